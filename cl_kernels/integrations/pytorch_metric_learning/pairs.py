"""Losses of all pairs of labelled rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as theirs
from torch import Tensor

from cl_kernels.losses.labels import same_label_similarity
from cl_kernels.pairs import count_same
from cl_kernels.statistics.functions import row_logsumexp, self_logsumexp

from .compared import Compared, streams


class _OfPairs:
    """Of a loss of the library that is made of a matrix of distances."""

    needs_both = True  # positive and negative pairs: without either it is zero

    def compute_loss(self: Any, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        if labels is None or not streams(self, indices_tuple):
            given = embeddings, labels, indices_tuple, ref_emb, ref_labels
            return super().compute_loss(*given)  # type: ignore[misc]
        return self.of_all_pairs(
            Compared.of(self.distance, embeddings, labels, ref_emb, ref_labels)
        )

    def of_all_pairs(self: Any, compared: Compared) -> dict[str, Any]:
        """The library's dictionary of losses."""
        counts = compared.pairs()
        if max(counts) <= 1 or (self.needs_both and 0 in counts):
            return self.zero_losses()
        losses, indices, kind = self._of(compared)
        return {"loss": {"losses": losses, "indices": indices, "reduction_type": kind}}


def _elements(losses: Tensor) -> tuple[Tensor, Tensor, str]:
    return losses, torch.arange(len(losses), device=losses.device), "element"


class NTXentLoss(_OfPairs, theirs.NTXentLoss):
    """``pytorch_metric_learning.losses.NTXentLoss``: each positive pair's cross-entropy against the
    anchor's negatives, in O(N D) memory and that of the positive pairs."""

    def _of(self, compared: Compared):
        anchors, positives = compared.positives()
        negatives = compared.logsumexp(1 / self.temperature, "different").index_select(0, anchors)
        rows = compared.rows.index_select(0, anchors)
        similarity = (rows * compared.keys.index_select(0, positives)).sum(1)
        losses = F.softplus(negatives - similarity / self.temperature, threshold=40)
        return losses, (anchors, positives), "pos_pair"


class SupConLoss(_OfPairs, theirs.SupConLoss):
    """``pytorch_metric_learning.losses.SupConLoss``: the mean over an anchor's positives of their
    cross-entropies, in O(N D) memory."""

    def _of(self, compared: Compared):
        rows, labels, keys, key_labels, itself = compared
        count = count_same(labels, key_labels)
        if keys is rows and itself:
            similarity, count = same_label_similarity(rows, labels), count - 1
            lse = self_logsumexp(rows, 1 / self.temperature, where=itself)
        else:
            similarity = same_label_similarity(rows, labels, keys, key_labels)
            if itself:  # what is there of these rows is no positive of theirs
                there = itself[0].query_ids
                own = (rows * keys.index_select(0, there.clamp_min(0))).sum(1)
                similarity = similarity - torch.where(there < 0, 0, own)
                count = count - (there >= 0).long()
            lse = row_logsumexp(rows, keys, 1 / self.temperature, where=itself)
        losses = lse - similarity / (self.temperature * count.clamp_min(1))
        return _elements(losses.masked_fill(count == 0, 0))


class MultiSimilarityLoss(_OfPairs, theirs.MultiSimilarityLoss):
    """``pytorch_metric_learning.losses.MultiSimilarityLoss``, in O(N D) memory."""

    needs_both = False

    def _of(self, compared: Compared):
        near = compared.logsumexp(-self.alpha, "same") + self.alpha * self.base
        far = compared.logsumexp(self.beta, "different") - self.beta * self.base
        of_near, of_far = (F.softplus(x, threshold=40) for x in (near, far))
        losses, *rest = _elements(of_near / self.alpha + of_far / self.beta)
        return losses[:, None], *rest  # as the library's are


REPLACED = [
    (theirs.NTXentLoss, NTXentLoss),
    (theirs.SupConLoss, SupConLoss),
    (theirs.MultiSimilarityLoss, MultiSimilarityLoss),
]
