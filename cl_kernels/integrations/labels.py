"""Labels as other libraries take them, and the pairs that they make."""

from __future__ import annotations

import torch
from torch import Tensor


def whole_labels(*labels: Tensor) -> tuple[Tensor, ...]:
    """int64 labels that are the same where these are; fractions get a number each."""
    if not any(x.is_floating_point() for x in labels):
        return tuple(x.long() for x in labels)
    number = torch.cat([x.double() for x in labels]).unique(return_inverse=True)[1]
    return tuple(number.split([len(x) for x in labels]))


def pairs_of_label(labels: Tensor, key_labels: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a row and a key of one label, ordered by rows, then by keys."""
    ordered, order = key_labels.sort(stable=True)
    first = torch.searchsorted(ordered, labels)
    counts = torch.searchsorted(ordered, labels, right=True) - first
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    start = (counts.cumsum(0) - counts).index_select(0, rows)
    within = torch.arange(len(rows), device=rows.device) - start
    return rows, order.index_select(0, first.index_select(0, rows) + within)
