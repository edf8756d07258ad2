"""Notes the primitive calls that a function would make, instead of computing them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels._scopes import Scopes


@dataclass(frozen=True)
class PrimitiveCall:
    """One visit of the tiles that a call would make: the shapes and who would serve it."""

    primitive: str
    backend: str
    asked: str | None
    M: int
    N: int
    D: int
    dtype: torch.dtype
    compute_dtype: torch.dtype
    device: torch.device


_calls: Scopes[list[PrimitiveCall]] = Scopes()


def active() -> bool:
    """Whether this thread is inside an ``explain``."""
    return _calls.innermost() is not None


def recording() -> AbstractContextManager[list[PrimitiveCall]]:
    return _calls.entered([])


def record(
    primitive: str,
    backend: str,
    asked: str | None,
    query: Tensor,
    shape: tuple[int, int],
    compute_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Notes a call on M x N pairs of embeddings like ``query``; returns zeros, [M] and [N].

    ``asked`` says where the backend was asked for by name, if it was.
    """
    (M, N), D = shape, query.shape[1]
    call = PrimitiveCall(
        primitive, backend, asked, M, N, D, query.dtype, compute_dtype, query.device
    )
    calls = _calls.innermost()
    assert calls is not None, "nobody records"
    calls.append(call)
    dtype = accumulator(query)
    return query.new_zeros(M, dtype=dtype), query.new_zeros(N, dtype=dtype)
