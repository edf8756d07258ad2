"""Embeddings and what they are compared with, as the library hands them over."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import distances
from torch import Tensor

from cl_kernels.integrations.labels import pairs_of_label, whole_labels
from cl_kernels.pairs import PairFilter, count_same
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
        others = rows if keys is embeddings else float_rows(keys, normalize=normalize)
        index = torch.arange(len(others), device=rows.device)
        if key_labels is labels:  # as the library tells whether rows are compared with themselves
            places = index
        itself = () if places is None else (PairFilter(places, index, "different"),)
        labels, key_labels = whole_labels(labels, key_labels)
        return cls(rows, labels, others, key_labels, itself)

    def logsumexp(self, scale: float, keep: Any) -> Tensor:
        """Over the keys of the same label or of different ones, [M]."""
        where = PairFilter(self.labels, self.key_labels, keep), *self.itself
        return row_logsumexp(self.rows, self.keys, scale, where=where)

    def positives(self) -> tuple[Tensor, Tensor]:
        """All pairs of one label, in the library's order."""
        rows, keys = pairs_of_label(self.labels, self.key_labels)
        for places in self.itself:
            other = places.query_ids.index_select(0, rows) != keys
            rows, keys = rows[other], keys[other]
        return rows, keys

    def pairs(self) -> tuple[int, int]:
        """How many positive and negative ones there are."""
        same = int(count_same(self.labels, self.key_labels).sum())
        own = sum(int((places.query_ids >= 0).sum()) for places in self.itself)
        return same - own, len(self.labels) * len(self.key_labels) - same


def streams(loss: Any, indices_tuple: Any = None) -> bool:
    """Whether a loss of pairs is made of tiles, or by the library with a matrix.

    Args:
        loss: ``NTXentLoss``, ``SupConLoss`` or ``MultiSimilarityLoss`` of this module.
        indices_tuple: What a miner found, as the loss is given it.

    Returns:
        True of cosines and inner products (power 1, p 2, no collected statistics) of all pairs.

    Example::

        assert streams(NTXentLoss()) and not streams(NTXentLoss(distance=LpDistance()))
    """
    distance = loss.distance
    known = type(distance) in (distances.CosineSimilarity, distances.DotProductSimilarity)
    plain = known and distance.power == 1 and distance.p == 2 and not distance.collect_stats
    return indices_tuple is None and plain
