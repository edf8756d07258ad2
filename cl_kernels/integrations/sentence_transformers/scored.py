"""Losses of scored pairs, and of pairs with their hardest negative."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor

from cl_kernels.losses import angle, cosent, mega_batch_margin

from .common import backpropagated, check_labels, normalizes

_OF_PAIRS = {util.pairwise_cos_sim: True, util.pairwise_dot_score: False}


class CoSENTLoss(theirs.CoSENTLoss):
    """``sentence_transformers.losses.CoSENTLoss``: its arguments and call.

    ``similarity_fct`` is the library's ``pairwise_cos_sim`` or ``pairwise_dot_score``.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        normalizes(self.similarity_fct, _OF_PAIRS)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        first, second = embeddings
        labels = check_labels(self, labels, len(first))
        normalize = normalizes(self.similarity_fct, _OF_PAIRS)
        return cosent(first, second, labels, scale=self.scale, normalize=normalize)


class AnglELoss(theirs.AnglELoss):
    """``sentence_transformers.losses.AnglELoss``: its arguments and call."""

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None
    ) -> Tensor:
        first, *others = embeddings
        if labels is None and len(others) < 2:
            raise ValueError("labels: expected the pairs' similarities, got None")
        labels = first.new_ones(len(first)) if labels is None else labels
        labels = check_labels(self, labels, len(first))
        if len(others) > 1:  # pairs of anchors and positives, and of anchors and negatives
            labels = torch.cat((labels, (1 - labels).repeat(len(others) - 1)))
        first = first.repeat(len(others), 1)
        return angle(first, torch.cat(others), labels, scale=self.scale)


class MegaBatchMarginLoss(theirs.MegaBatchMarginLoss):
    """``sentence_transformers.losses.MegaBatchMarginLoss``: its arguments and call; the hardest
    negatives are found by ``topk``."""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        columns = [torch.cat(column) for column in reps[:2]]
        margins = {
            "positive_margin": self.positive_margin,
            "negative_margin": self.negative_margin,
        }
        loss = mega_batch_margin(*columns, **margins)
        return backpropagated(loss, with_backward)


REPLACED = [
    (theirs.CoSENTLoss, CoSENTLoss),
    (theirs.AnglELoss, AnglELoss),
    (theirs.MegaBatchMarginLoss, MegaBatchMarginLoss),
]
