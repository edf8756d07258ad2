"""Pairs of a score and an index as integers of one order, and the selection of the best."""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = torch.iinfo(torch.int64).min  # a place without a pair


def pack(scores: Tensor, first: int) -> Tensor:
    """int64 whose order is that of the scores and, among equals, of falling indices."""
    bits = scores.view(torch.int32).to(torch.int64)
    sortable = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    index = torch.arange(first, first + scores.shape[1], device=scores.device)
    packed = (sortable << 32) | (0xFFFFFFFF - index)
    return packed.masked_fill_(scores == -torch.inf, EMPTY)


def unpack(packed: Tensor) -> tuple[Tensor, Tensor]:
    sortable = (packed >> 32).to(torch.int32)
    scores = torch.where(sortable < 0, sortable ^ 0x7FFFFFFF, sortable).view(torch.float32)
    empty = packed == EMPTY
    index = 0xFFFFFFFF - (packed & 0xFFFFFFFF)
    return scores.masked_fill(empty, -torch.inf), index.masked_fill(empty, -1)


def largest(packed: Tensor, k: int) -> Tensor:
    """The k largest of each row in falling order; places without one are empty."""
    best = packed.topk(min(k, packed.shape[1]), dim=1).values
    return torch.nn.functional.pad(best, (0, k - best.shape[1]), value=EMPTY)


def select_topk(packed, counts, k):
    places = torch.arange(packed.shape[2], device=packed.device)
    survivors = torch.where(places < counts[..., None], packed, EMPTY)
    return unpack(largest(survivors.flatten(1), k))
