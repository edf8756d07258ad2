"""Numbers for filters' ids: few are compared with one another in one launch, many are sorted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cl_kernels.backends.gpu import ids as gpu_ids

from .launch import launch
from .tiles import kernel

SORTED_FROM = 8192  # ids
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


def numbered(ids: Tensor) -> Tensor:
    (R,) = ids.shape
    if R >= SORTED_FROM:
        return gpu_ids.numbered(ids)
    numbers = ids.new_empty(R, dtype=torch.int32)
    programs = triton.cdiv(R, BLOCK)
    launch(first_equal_kernel, programs, ids.device, (ids, numbers, R), {"BLOCK": BLOCK})
    return numbers


def compact_ids(query_ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor]:
    """One filter's ids as kernels compare them, int32."""
    return gpu_ids.compact_ids(query_ids, key_ids, numbered)
