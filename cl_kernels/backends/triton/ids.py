"""Filters' ids as kernels compare them: int32.

Only equality counts, so 64-bit ids (hashes, say) are replaced by small numbers of the same
equality. That halves the registers and the instructions of comparing them pair by pair.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tiles import kernel

Ids = tuple[Tensor | None, Tensor | None]  # the ids of one side, for each of two filters

SORTED_FROM = 8192  # ids; fewer are compared with one another, in one launch
BLOCK = 64


@kernel
def first_equal_kernel(IDS, OUT, R, BLOCK: tl.constexpr):
    """OUT[i] = the first j whose id equals that of i."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(IDS + rows, mask=rows < R, other=0)
    first = rows
    for start in range(0, R, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        others = tl.load(IDS + cols, mask=cols < R, other=0)
        equal = (ids[:, None] == others[None, :]) & (cols < R)[None, :]
        first = tl.minimum(first, tl.min(tl.where(equal, cols[None, :], rows[:, None]), 1))
    tl.store(OUT + rows, first, mask=rows < R)


def _numbered(ids: Tensor) -> Tensor:
    """int32 numbers that are equal exactly where the ids are."""
    (R,) = ids.shape
    numbers = ids.new_empty(R, dtype=torch.int32)
    if R < SORTED_FROM:
        launch(first_equal_kernel, triton.cdiv(R, BLOCK), (ids, numbers, R), {"BLOCK": BLOCK})
        return numbers
    ordered, order = ids.sort()
    changes = torch.zeros_like(numbers)
    changes[1:] = ordered[1:] != ordered[:-1]
    return numbers.scatter_(0, order, changes.cumsum(0, dtype=torch.int32))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    # Tensors that are empty, or on no real device, all have the address 0.
    same_address = a.data_ptr() == b.data_ptr() != 0
    return same_address and a.shape == b.shape and a.stride() == b.stride()


def compact_ids(query_ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor]:
    """One filter's ids as int32; one tensor twice where they were one tensor."""
    if _same_memory(query_ids, key_ids):
        numbers = _numbered(query_ids.contiguous())
        return numbers, numbers
    numbers = _numbered(torch.cat([query_ids, key_ids]))
    M = len(query_ids)
    # A copy, so that both are aligned.
    return numbers[:M], numbers[M:].clone()
