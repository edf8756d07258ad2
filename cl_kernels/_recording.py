"""Notes the primitive calls that a function would make, instead of computing them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrimitiveCall:
    """One visit of the tiles that a call would make: the shapes and who would serve it."""

    primitive: str
    backend: str
    M: int
    N: int
    D: int
    dtype: torch.dtype
    compute_dtype: torch.dtype
    device: str


_calls: list[list[PrimitiveCall]] = []


def active() -> bool:
    return bool(_calls)


@contextmanager
def recording() -> Iterator[list[PrimitiveCall]]:
    _calls.append([])
    try:
        yield _calls[-1]
    finally:
        _calls.pop()


def record(
    primitive: str,
    backend: str,
    query: Tensor,
    shape: tuple[int, int, int],
    compute_dtype: torch.dtype,
):
    """Notes a call of shape (M, N, D) on embeddings like ``query``; returns zeros as its result."""
    M, N, D = shape
    device = query.device.type
    _calls[-1].append(
        PrimitiveCall(primitive, backend, M, N, D, query.dtype, compute_dtype, device)
    )
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    row = query.new_zeros(M, dtype=dtype)
    return (row, query.new_zeros(N, dtype=dtype)) if primitive == "row_col_logsumexp" else row
