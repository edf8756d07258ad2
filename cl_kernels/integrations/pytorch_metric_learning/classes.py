"""Losses that learn a column for each class."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning import reducers
from pytorch_metric_learning.utils import common_functions, loss_and_miner_utils
from torch import Tensor

from cl_kernels.losses import arcface, cosface, normalized_softmax

from .compared import streams


class _OfClasses:
    """Of a loss of the library whose parameter ``W`` is [D, classes]."""

    def compute_loss(self: Any, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        if not (streams(self) and self.distance.normalize_embeddings and self._serves()):
            given = embeddings, labels, indices_tuple, ref_emb, ref_labels
            return super().compute_loss(*given)  # type: ignore[misc]
        common_functions.labels_required(labels)
        common_functions.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        self.cast_types(embeddings.dtype, embeddings.device)
        # Of a mean the gradients are made in one visit.
        averaged = indices_tuple is None and type(self.reducer) is reducers.MeanReducer
        reduction = "mean" if averaged and not self.reducer.collect_stats else "none"
        losses = self._of(embeddings, labels, self.W.t(), reduction)
        indices, kind = None, "already_reduced"
        if reduction == "none":
            indices, kind = torch.arange(len(losses), device=losses.device), "element"
        if indices_tuple is not None:
            weights = loss_and_miner_utils.convert_to_weights(
                indices_tuple, labels, dtype=losses.dtype
            )
            losses = losses * weights
        found = {"loss": {"losses": losses, "indices": indices, "reduction_type": kind}}
        self.add_weight_regularization_to_loss_dict(found, self.W.t())
        return found

    def _serves(self) -> bool:
        return True

    def _note_angles(self: Any, embeddings: Tensor, labels: Tensor, weight: Tensor) -> None:
        """What the library records of the angles to the rows' classes."""
        if self.collect_stats:
            with torch.no_grad():
                own = weight.index_select(0, labels)
                self.get_angles(torch.cosine_similarity(embeddings, own))


class ArcFaceLoss(_OfClasses, theirs.ArcFaceLoss):
    """``pytorch_metric_learning.losses.ArcFaceLoss``: its arguments (the margin in degrees, from 0
    to 90; others are left to the library) and call; no row of logits is held."""

    def _serves(self) -> bool:
        return 0 <= self.margin <= math.pi / 2

    def _of(self, embeddings: Tensor, labels: Tensor, weight: Tensor, reduction: Any) -> Tensor:
        self._note_angles(embeddings, labels, weight)
        settings: Any = {"margin": float(self.margin), "scale": self.scale, "reduction": reduction}
        return arcface(embeddings, labels, weight, **settings)


class CosFaceLoss(_OfClasses, theirs.CosFaceLoss):
    """``pytorch_metric_learning.losses.CosFaceLoss``: its arguments and call."""

    def _of(self, embeddings: Tensor, labels: Tensor, weight: Tensor, reduction: Any) -> Tensor:
        self._note_angles(embeddings, labels, weight)
        settings: Any = {"margin": float(self.margin), "scale": self.scale, "reduction": reduction}
        return cosface(embeddings, labels, weight, **settings)


class NormalizedSoftmaxLoss(_OfClasses, theirs.NormalizedSoftmaxLoss):
    """``pytorch_metric_learning.losses.NormalizedSoftmaxLoss``: its arguments and call."""

    def _of(self, embeddings: Tensor, labels: Tensor, weight: Tensor, reduction: Any) -> Tensor:
        settings: Any = {"temperature": self.temperature, "reduction": reduction}
        return normalized_softmax(embeddings, labels, weight, **settings)


REPLACED = [
    (theirs.ArcFaceLoss, ArcFaceLoss),
    (theirs.CosFaceLoss, CosFaceLoss),
    (theirs.NormalizedSoftmaxLoss, NormalizedSoftmaxLoss),
]
