"""What makes a loss of other losses: it has no textbook form of its own, and tests by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

import cl_kernels


class Wrapper(NamedTuple):
    """A function that takes a loss, the same as a module, and its line in the README's table."""

    ours: Callable[..., Any]
    module: type[nn.Module]
    title: str

    @property
    def name(self) -> str:
        return self.ours.__name__


WRAPPERS: dict[str, Wrapper] = {
    "matryoshka": Wrapper(
        cl_kernels.matryoshka,
        cl_kernels.MatryoshkaLoss,
        "Matryoshka: any loss at several widths",
    )
}
