"""Multiple negatives ranking, plain and through a gradient cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor

from cl_kernels.losses import multiple_negatives_ranking

from .common import backpropagated, gathered, normalizes


class _Ranking:
    """Of a loss that has the library's settings."""

    def __init__(self: Any, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        normalizes(self.similarity_fct)

    def _of(self: Any, embeddings: Sequence[Tensor]) -> Tensor:
        if len(embeddings) < 2:
            raise ValueError(
                f"sentence_features: expected an anchor, a positive and further columns of "
                f"negatives, got {len(embeddings)} columns"
            )
        anchors, *candidates = embeddings
        return multiple_negatives_ranking(
            anchors,
            candidates,
            scale=self.scale,
            directions=self.directions,
            partition_mode=self.partition_mode,
            hardness_mode=self.hardness_mode,
            hardness_strength=self.hardness_strength,
            normalize=normalizes(self.similarity_fct),
            **gathered(self.gather_across_devices),
        )


class MultipleNegativesRankingLoss(_Ranking, theirs.MultipleNegativesRankingLoss):
    """``sentence_transformers.losses.MultipleNegativesRankingLoss``: its arguments and call.

    ``similarity_fct`` is the library's ``cos_sim`` or ``dot_score``; others are refused.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Any = None) -> Tensor:
        return self._of(embeddings)


class CachedMultipleNegativesRankingLoss(_Ranking, theirs.CachedMultipleNegativesRankingLoss):
    """``sentence_transformers.losses.CachedMultipleNegativesRankingLoss``, whose cached gradients
    are those of one call for the whole batch: ``mini_batch_size`` and ``mini_batch_num_tokens`` cut
    the model's passes alone."""

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Any = None, *, with_backward: bool = False
    ) -> Tensor:
        return backpropagated(self._of([torch.cat(column) for column in reps]), with_backward)


with warnings.catch_warnings():  # the library's bases are deprecated, not their replacements here
    warnings.simplefilter("ignore")

    class MultipleNegativesSymmetricRankingLoss(
        _Ranking, theirs.MultipleNegativesSymmetricRankingLoss
    ):
        """``sentence_transformers.losses.MultipleNegativesSymmetricRankingLoss``."""

        def compute_loss_from_embeddings(
            self, embeddings: list[Tensor], labels: Any = None
        ) -> Tensor:
            return self._of(embeddings)

    class CachedMultipleNegativesSymmetricRankingLoss(
        _Ranking, theirs.CachedMultipleNegativesSymmetricRankingLoss
    ):
        """``sentence_transformers.losses.CachedMultipleNegativesSymmetricRankingLoss``."""

        calculate_loss = CachedMultipleNegativesRankingLoss.calculate_loss


REPLACED = [
    (getattr(theirs, ours.__name__), ours)
    for ours in (
        MultipleNegativesRankingLoss,
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesSymmetricRankingLoss,
        CachedMultipleNegativesSymmetricRankingLoss,
    )
]
