"""Statistics that several processes compute together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_kernels._scopes import Scopes


class Spread(str):
    """The name of a backend by which several processes compute statistics together; a plain name
    computes them here."""

    weighs_keys = True  # whether it has ``weighted_key``

    def forward(self, statistic: Any, query: Tensor, key: Tensor | None, scale: Tensor, call: Any):
        raise NotImplementedError

    def weighted_key(self, statistic: Any, query: Tensor, key: Tensor, scale: Tensor, call: Any):
        raise NotImplementedError

    def backward(
        self,
        statistic: Any,
        grads: Sequence[Tensor],
        values: Sequence[Tensor],
        query: Tensor,
        key: Tensor | None,
        scale: Tensor,
        call: Any,
        needs: Sequence[bool],
    ):
        raise NotImplementedError

    def of_shared(self) -> str:
        """Who serves a batch's further keys."""
        return self

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Ids of a batch's rows, which no row of another process has."""
        return torch.arange(count, device=device)


# Makes of a chosen backend who serves an operation.
Chooser = Callable[[str, str], str]

spreading: Scopes[Chooser] = Scopes()


def positions(backend: str, count: int, device: torch.device) -> Tensor:
    if isinstance(backend, Spread):
        return backend.positions(count, device)
    return torch.arange(count, device=device)


def weighs_keys(backend: str) -> bool:
    return not isinstance(backend, Spread) or backend.weighs_keys


def of_shared(backend: str) -> str:
    return backend.of_shared() if isinstance(backend, Spread) else backend
