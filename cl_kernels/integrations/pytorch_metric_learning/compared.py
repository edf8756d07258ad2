"""Embeddings and what they are compared with, as the library hands them over."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import distances
from torch import Tensor

from cl_kernels.pairs import PairFilter
from cl_kernels.statistics.functions import row_logsumexp
from cl_kernels.statistics.rows import float_rows


class Compared(NamedTuple):
    """
    Args:
        rows: [M, D], of unit length if the distance normalizes them.
        labels: int64 [M].
        keys: [N, D].
        key_labels: int64 [N].
        itself: Keeps the pairs of different rows; () of keys that are none of the rows.
    """

    rows: Tensor
    labels: Tensor
    keys: Tensor
    key_labels: Tensor
    itself: tuple[PairFilter, ...]

    @classmethod
    def of(cls, distance: Any, embeddings, labels, keys, key_labels, places=None) -> Compared:
        """``places``: where among the keys the rows are, [M]; -1: nowhere."""
        normalize = distance.normalize_embeddings
        rows = float_rows(embeddings, normalize=normalize)
        itself = ()
        if keys is embeddings:
            places, others = torch.arange(len(rows), device=rows.device), rows
        else:
            others = float_rows(keys, normalize=normalize)
        if places is not None:
            index = torch.arange(len(others), device=rows.device)
            itself = (PairFilter(places, index, "different"),)
        return cls(rows, labels.long(), others, key_labels.long(), itself)

    def logsumexp(self, scale: float, keep: Any) -> Tensor:
        """Over the keys of the same label or of different ones, [M]."""
        where = PairFilter(self.labels, self.key_labels, keep), *self.itself
        return row_logsumexp(self.rows, self.keys, scale, where=where)

    def positives(self) -> tuple[Tensor, Tensor]:
        """All pairs of one label, in the library's order."""
        ordered, order = self.key_labels.sort(stable=True)
        first = torch.searchsorted(ordered, self.labels)
        counts = torch.searchsorted(ordered, self.labels, right=True) - first
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        start = (counts.cumsum(0) - counts).index_select(0, rows)
        within = torch.arange(len(rows), device=rows.device) - start
        keys = order.index_select(0, first.index_select(0, rows) + within)
        for places in self.itself:
            other = places.query_ids.index_select(0, rows) != keys
            rows, keys = rows[other], keys[other]
        return rows, keys

    def has_negatives(self) -> bool:
        labels, others = self.labels, self.key_labels
        if not (len(labels) and len(others)):
            return False
        return bool((others != labels[0]).any() or (labels != labels[0]).any())


def streams(loss: Any, indices_tuple: Any) -> bool:
    """Whether a loss of pairs is made of tiles: of inner products, and of all pairs."""
    distance = loss.distance
    known = type(distance) in (distances.CosineSimilarity, distances.DotProductSimilarity)
    plain = known and distance.power == 1 and distance.p == 2 and not distance.collect_stats
    return indices_tuple is None and plain
