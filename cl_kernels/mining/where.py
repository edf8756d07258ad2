"""What pair filters drop: counted from the ids alone, or marked for a block of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cl_kernels.pairs import PairFilter, count_same


def count_dropped(filters: Sequence[PairFilter], rows: Tensor, num_keys: int) -> Tensor:
    """How many of the N keys each query of ``rows`` [m] loses to at most two filters: [m].

    It takes O((m + N) log N).
    """
    kept = torch.full_like(rows, num_keys)
    ids = [(f.query_ids[rows], f.key_ids) for f in filters]
    if filters:
        kept = _count_kept(filters[0].keep, kept, count_same(*ids[0]))
    if len(filters) == 2:
        both, second = count_same(*_joint(*ids)), count_same(*ids[1])
        # Of the keys with the second filter's id, those that the first keeps.
        kept = _count_kept(filters[1].keep, kept, _count_kept(filters[0].keep, second, both))
    return num_keys - kept


def _count_kept(keep: str, total: Tensor, same: Tensor) -> Tensor:
    return same if keep == "same" else total - same


def dropped(filters: Sequence[PairFilter], rows: Tensor, keys: Tensor | slice) -> Tensor:
    """Whether a filter drops the pairs of ``rows`` with ``keys``, which broadcast."""
    result = torch.zeros((), dtype=torch.bool, device=rows.device)
    for f in filters:
        same = f.query_ids[rows] == f.key_ids[keys]
        result = result | (~same if f.keep == "same" else same)
    return result


def _joint(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One id for each pair of ids, of queries [m] and of keys [N]."""
    sizes = [len(ids) for ids in first]
    dense = [torch.cat(ids).unique(return_inverse=True)[1] for ids in (first, second)]
    queries, keys = (dense[0] * sum(sizes) + dense[1]).split(sizes)
    return queries, keys
