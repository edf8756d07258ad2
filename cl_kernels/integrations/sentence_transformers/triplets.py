"""Triplets of labelled sentences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor

from cl_kernels.integrations.labels import pairs_of_label, whole_labels
from cl_kernels.losses import triplet
from cl_kernels.losses.labels import other_label
from cl_kernels.losses.triplet import comparable, distance_of, mined_triplets
from cl_kernels.pairs import PairFilter
from cl_kernels.search import topk
from cl_kernels.statistics.rows import float_rows

from .common import check_labels, normalizes

_DISTANCES = theirs.BatchHardTripletLossDistanceFunction
_KNOWN = {_DISTANCES.cosine_distance: True, _DISTANCES.euclidean_distance: False}


class _Triplets:
    """Of a loss that has the library's settings."""

    distance_metric: Any

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        normalizes(self.distance_metric, _KNOWN, "distance_metric")

    def _rows(self, embeddings: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor, str]:
        """As distances are taken of them, their labels, and which distance."""
        (x,) = embeddings
        cosine = normalizes(self.distance_metric, _KNOWN, "distance_metric")
        (labels,) = whole_labels(check_labels(self, labels, len(x)))
        return float_rows(x, normalize=cosine), labels, "cosine" if cosine else "euclidean"

    def _hardest(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Of each row how much farther its farthest positive is than its nearest negative: 0 is
        the distance of no positive, and the farthest row stands for no negative."""
        rows, labels, distance = self._rows(embeddings, labels)
        settings = {"normalize": False}
        given = rows.detach(), rows.detach(), labels
        at_positive, at_negative = mined_triplets(*given, "batch_hard", distance, settings)
        near, far = (
            distance_of(rows, rows.index_select(0, at.clamp_min(0)), distance)
            for at in (at_positive, at_negative)
        )
        near = near.masked_fill(at_positive < 0, 0)
        return near - torch.where(at_negative < 0, near, far)


class BatchAllTripletLoss(_Triplets, theirs.BatchAllTripletLoss):
    """``sentence_transformers.losses.BatchAllTripletLoss``: its arguments and call.

    Of all triplet losses here, ``distance_metric`` is the library's ``cosine_distance`` or
    ``euclidean_distance``; others are refused.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        rows, labels, distance = self._rows(embeddings, labels)
        options: Any = {"distance": distance, "normalize": False}
        return triplet(rows, labels, margin=self.triplet_margin, **options)


class BatchHardTripletLoss(_Triplets, theirs.BatchHardTripletLoss):
    """``sentence_transformers.losses.BatchHardTripletLoss``: its arguments and call."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        gap = self._hardest(embeddings, labels) + self.triplet_margin
        return gap.relu().mean()


class BatchHardSoftMarginTripletLoss(_Triplets, theirs.BatchHardSoftMarginTripletLoss):
    """``sentence_transformers.losses.BatchHardSoftMarginTripletLoss``: its arguments and call."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        return F.softplus(self._hardest(embeddings, labels)).mean()


class BatchSemiHardTripletLoss(_Triplets, theirs.BatchSemiHardTripletLoss):
    """``sentence_transformers.losses.BatchSemiHardTripletLoss``: its arguments and call. Of classes
    of K rows B (K - 1) rows are searched for: it is meant for small classes."""

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        rows, labels, distance = self._rows(embeddings, labels)
        anchors, positives = pairs_of_label(labels, labels)
        others = anchors != positives
        anchors, positives = anchors[others], positives[others]
        at = self._negatives(rows.detach(), labels, anchors, positives, distance)
        anchor, positive, negative = (
            rows.index_select(0, i) for i in (anchors, positives, at.clamp_min(0))
        )
        near, far = (distance_of(anchor, x, distance) for x in (positive, negative))
        gap = near - far.masked_fill(at < 0, 0) + self.margin
        return gap.relu().sum() / max(len(anchors), 1)

    def _negatives(
        self, rows: Tensor, labels: Tensor, anchors: Tensor, positives: Tensor, distance: str
    ) -> Tensor:
        """Of each pair the nearest negative that is farther than the positive, else the farthest;
        -1 of an anchor that has none."""
        query, key = comparable(rows, distance)
        score = (query[anchors] * key[positives]).sum(1)
        others = PairFilter(labels[anchors], labels, "different")
        options = {"where": others, "normalize": False}
        farther = topk(query[anchors], key, 1, below=score, **options).indices[:, 0]
        farthest = topk(query, key, 1, where=other_label(labels), largest=False, normalize=False)
        return torch.where(farther < 0, farthest.indices[anchors, 0], farther)


REPLACED = [
    (theirs.BatchAllTripletLoss, BatchAllTripletLoss),
    (theirs.BatchHardTripletLoss, BatchHardTripletLoss),
    (theirs.BatchHardSoftMarginTripletLoss, BatchHardSoftMarginTripletLoss),
    (theirs.BatchSemiHardTripletLoss, BatchSemiHardTripletLoss),
]
