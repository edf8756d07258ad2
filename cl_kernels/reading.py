"""Whether a check may read values: doing so on a GPU waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from cl_kernels._scopes import Scopes

_debugging: Scopes[bool] = Scopes()


@contextmanager
def debug_checks() -> Iterator[None]:
    """Checks values that live on a GPU too, in this thread (each check waits for the GPU)."""
    with _debugging.entered(True):
        yield


def readable(x: Tensor) -> bool:
    """Not while torch.compile traces, not a fake tensor, and on a GPU only if ``debug_checks``
    asks for it."""
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        return False
    return x.device.type == "cpu" or bool(_debugging.innermost())
