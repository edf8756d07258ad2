"""GIST: a guide's similarities say which negatives count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.util import batch_to_device
from torch import Tensor

from cl_kernels.losses import gist

from .common import backpropagated, gathered

_Features = dict[str, Tensor]


def _loss(settings: Any, embeddings: Sequence[Tensor], guides: Sequence[Tensor]) -> Tensor:
    """Of anchors, positives and columns of negatives, with the library's settings."""
    anchors, positives, *negatives = embeddings
    of_anchors, of_positives, *of_negatives = guides
    further = (torch.cat(negatives), torch.cat(of_negatives)) if negatives else ()
    return gist(
        anchors,
        positives,
        of_anchors,
        of_positives,
        *further,
        temperature=settings.temperature,
        margin_strategy=settings.margin_strategy,
        margin=settings.margin,
        contrast_anchors=settings.contrast_anchors,
        contrast_positives=settings.contrast_positives,
        **gathered(settings.gather_across_devices),
    )


class GISTEmbedLoss(theirs.GISTEmbedLoss):
    """``sentence_transformers.losses.GISTEmbedLoss``: its arguments and call, in O(N D) memory.

    With ``gather_across_devices`` the other processes' anchors are contrasted as well.
    """

    def forward(self, sentence_features: Iterable[_Features], labels: Tensor) -> Tensor:
        features = list(sentence_features)
        if len(features) not in (2, 3):
            raise ValueError(
                f"sentence_features: expected an anchor, a positive and at most one negative, got "
                f"{len(features)} columns"
            )
        for_guide = [dict(x) for x in features]  # models write into what they are given
        embeddings = embed_columns(self.model, features)
        with torch.no_grad():
            if self.must_retokenize:
                for_guide = [self._retokenized(x) for x in for_guide]
            guides = embed_columns(self.guide, for_guide)
        return _loss(self, embeddings, guides)

    def _retokenized(self, features: _Features) -> Any:
        """The guide's features of the same texts."""
        ids, ends = features["input_ids"], features.get("cu_seq_lens_q")
        texts: Any = ids
        if ends is not None:  # texts that stand in one row, one after the other
            texts = [part.tolist() for part in ids[0].tensor_split(ends[1:-1].cpu())]
        decoded = self.tokenizer.batch_decode(texts, skip_special_tokens=True)
        return batch_to_device(self.guide.preprocess(decoded), self.guide.device)


class CachedGISTEmbedLoss(theirs.CachedGISTEmbedLoss):
    """``sentence_transformers.losses.CachedGISTEmbedLoss``, whose cached gradients are those of one
    call for the whole batch: ``mini_batch_size`` and ``mini_batch_num_tokens`` cut the models'
    passes alone."""

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        reps_guided: list[list[Tensor]],
        *,
        with_backward: bool = False,
    ) -> Tensor:
        columns = ([torch.cat(x) for x in of_model] for of_model in (reps, reps_guided))
        return backpropagated(_loss(self, *columns), with_backward)


REPLACED = [
    (theirs.GISTEmbedLoss, GISTEmbedLoss),
    (theirs.CachedGISTEmbedLoss, CachedGISTEmbedLoss),
]
