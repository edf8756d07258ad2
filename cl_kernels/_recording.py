"""Notes the primitive calls that a function would make, instead of computing them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from cl_kernels._dispatch import Request
from cl_kernels._precision import accumulator
from cl_kernels._scopes import Scopes


@dataclass(frozen=True)
class PrimitiveCall:
    """One visit of the tiles that a call would make: M x N pairs, and who would serve it.

    Attributes:
        request: The operation and what embeddings it is asked for.
        backend: Which backend would serve it.
        asked: Where that backend was asked for by name, if it was.
        M, N: How many rows and columns.
        guide_width: Of another model's embeddings, whose product is made too; 0 without them.
    """

    request: Request
    backend: str
    asked: str | None
    M: int
    N: int
    guide_width: int = 0

    @property
    def primitive(self) -> str:
        return self.request.operation


_calls: Scopes[list[PrimitiveCall]] = Scopes()


def active() -> bool:
    """Whether this thread is inside an ``explain``."""
    return _calls.innermost() is not None


def recording() -> AbstractContextManager[list[PrimitiveCall]]:
    return _calls.entered([])


def record(call: PrimitiveCall, query: Tensor) -> tuple[Tensor, Tensor]:
    """Notes a call on embeddings like ``query``; returns zeros, [M] and [N]."""
    calls = _calls.innermost()
    assert calls is not None, "nobody records"
    calls.append(call)
    dtype = accumulator(query)
    return query.new_zeros(call.M, dtype=dtype), query.new_zeros(call.N, dtype=dtype)
