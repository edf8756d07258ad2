"""Filters' ids as kernels compare them: int32.

Only equality counts, so 64-bit ids (hashes, say) are replaced by small numbers of the same
equality. That halves the registers and the instructions of comparing them pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def numbered(ids: Tensor) -> Tensor:
    """int32 numbers that are equal exactly where the ids are."""
    ordered, order = ids.sort()
    changes = torch.zeros_like(ids, dtype=torch.int32)
    changes[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(changes).scatter_(0, order, changes.cumsum(0, dtype=torch.int32))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    # Tensors that are empty, or on no real device, all have the address 0.
    same_address = a.data_ptr() == b.data_ptr() != 0
    return same_address and a.shape == b.shape and a.stride() == b.stride()


def compact_ids(
    query_ids: Tensor, key_ids: Tensor, numbered: Callable[[Tensor], Tensor] = numbered
) -> tuple[Tensor, Tensor]:
    """One filter's ids as int32; one tensor twice where they were one tensor."""
    if _same_memory(query_ids, key_ids):
        numbers = numbered(query_ids.contiguous())
        return numbers, numbers
    numbers = numbered(torch.cat([query_ids, key_ids]))
    M = len(query_ids)
    # A copy, so that both are aligned.
    return numbers[:M], numbers[M:].clone()
