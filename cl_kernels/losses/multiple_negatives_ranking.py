"""Multiple negatives ranking: a query's document against all others, in up to four directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_scalar
from cl_kernels.losses import epilogues
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.both_sides import joint, over_both_sides
from cl_kernels.losses.common import (
    LARGEST,
    Reduction,
    as_inputs,
    check_choice,
    check_reduction,
    check_same_rows,
    logit_bound,
    total,
    union,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.labels import as_labels
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.weighted_ranking import Strengths, weighted_ranking
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group
from cl_kernels.reading import readable
from cl_kernels.statistics.functions import row_col_logsumexp, row_logsumexp, self_logsumexp
from cl_kernels.statistics.positives import pair_logits
from cl_kernels.statistics.rows import float_rows

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]
HardnessMode = Literal["in_batch_negatives", "hard_negatives", "all_negatives"]
_DIRECTIONS = "query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"
_MODES = "in_batch_negatives", "hard_negatives", "all_negatives"


def multiple_negatives_ranking(
    anchors: Tensor,
    candidates: Tensor | Sequence[Tensor],
    *,
    scale: float | Tensor = 20.0,
    directions: Sequence[Direction] = ("query_to_doc",),
    partition_mode: Literal["joint", "per_direction"] = "joint",
    hardness_mode: HardnessMode | None = None,
    hardness_strength: float = 0.0,
    ids: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of each anchor's positive against all other candidates of the batch.

    Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply" (2017),
    section 4.4, with the settings of sentence-transformers' ``MultipleNegativesRankingLoss``. All
    four directions, joint, are equation 3 of Li et al., "Towards General Text Embeddings with
    Multi-stage Contrastive Learning" (2023). Hardness weights are equation 5 of Lan et al.,
    "LLaVE: Large Language and Vision Embedding Models with Hardness-Weighted Contrastive
    Learning" (2025).

    Args:
        anchors: Embeddings of queries, shape [B, D]. float32, float16, bfloat16 or float64.
        candidates: Embeddings of documents: the positives, shape [B, D]; or a sequence of such
            columns (or [1 + K, B, D]), the positives first, then K columns of hard negatives.
            Each document is a negative of every anchor but its positive's.
        scale: Inverse temperature, above 0: a number, or a 0-d tensor that may require grad.
        directions: What is compared, ``"query_to_doc"`` at least. ``"doc_to_query"``: the positive
            with all anchors. ``"query_to_query"``: the anchor with all others. ``"doc_to_doc"``:
            the positive with all documents of other anchors.
        partition_mode: ``"joint"``: one softmax over all directions, which has the positive once
            for each of ``"query_to_doc"`` and ``"doc_to_query"``. ``"per_direction"``: the mean of
            the losses of these two.
        hardness_mode: To which logits of ``"query_to_doc"`` their similarity, detached, is added
            ``hardness_strength`` times: to those of documents of other anchors
            (``"in_batch_negatives"``), of the anchor's own hard negatives (``"hard_negatives"``)
            or of both (``"all_negatives"``). Default: to none.
        hardness_strength: A number of at least 0.
        ids: Integers, shape [B]. Rows of the same id are duplicates: none of a row's columns is a
            negative of the other's anchor or positive, in any direction. Default: all differ.
        normalize: Divide rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over the anchors, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        An anchor without negatives has loss 0 in each softmax that has its positive once; the mean
        over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = multiple_negatives_ranking(queries, [documents, hard_negatives], scale=20.0)
    """
    if over_several(gather, group):
        return over_ranks(multiple_negatives_ranking, locals())
    anchors, positives, hard = _columns(anchors, candidates)
    chosen = _chosen(directions, partition_mode)
    in_batch, own = _strengths(hardness_mode, hardness_strength)
    check_reduction(reduction)
    scale = as_scalar("scale", scale, anchors)
    if (not isinstance(scale, Tensor) or readable(scale)) and not scale > 0:
        raise ValueError(f"scale: expected a number above 0, got {float(scale)}")
    where = ()
    if ids is not None:
        ids = as_labels("ids", ids, anchors, "anchors")
        where = (PairFilter(ids, ids, "different"),)

    clip = chosen == {"query_to_doc", "doc_to_query"} and partition_mode == "per_direction"
    plain = not in_batch and (hard is None or not (own or where or clip))
    if plain and (clip or chosen == {"query_to_doc"}):
        return contrast(
            Recipe("row_col_logsumexp" if clip else "row_logsumexp", "softplus", normalize),
            anchors,
            positives,
            scale,
            where,
            None if hard is None else hard.flatten(0, 1),
            logit_bound=logit_bound(normalize, scale=scale),
            reduction=reduction,
            backend=backend,
        )
    if len(chosen) == len(_DIRECTIONS) and plain and hard is None:
        where = () if ids is None else (PairFilter(ids.repeat(2), ids.repeat(2), "different"),)
        bound = logit_bound(normalize, scale=scale)
        options = {"normalize": normalize, "logit_bound": bound, "backend": backend}
        sets = over_both_sides(anchors, positives, scale, where, **options)
        # The positive is in the denominator again, by "doc_to_query".
        return total(joint([*sets, torch.zeros_like(sets[0])]), reduction)
    if chosen == {"query_to_doc"}:
        options = {"normalize": normalize, "reduction": reduction, "backend": backend}
        rows = anchors, positives, hard
        return weighted_ranking(*rows, ids, scale, Strengths(in_batch, own), **options)
    batch = _Batch.of(anchors, positives, hard, ids, scale, normalize, backend)
    negatives = batch.negatives(chosen, in_batch, own)
    positive = pair_logits(batch.queries, batch.docs, scale)
    if partition_mode == "joint":
        again = [positive] if "doc_to_query" in chosen else []
        losses = epilogues.softplus(union([*negatives, *again]), positive)
    else:
        losses = torch.stack([epilogues.softplus(lse, positive) for lse in negatives]).mean(0)
    return total(losses, reduction)


class MultipleNegativesRankingLoss(LossModule):
    """``multiple_negatives_ranking`` as a module: ``loss(anchors, candidates, *, ids=None)``.

    Settings are the function's other arguments; a scale may be an ``nn.Parameter`` (0-d), which
    is learned.
    """

    function = multiple_negatives_ranking
    inputs = "anchors", "candidates"
    options = ("ids",)


def _columns(
    anchors: Tensor, candidates: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Anchors, positives, and columns of hard negatives, [K, B, D]."""
    columns = candidates
    if isinstance(candidates, Tensor):
        columns = candidates.unbind() if candidates.dim() == 3 else (candidates,)
    if not isinstance(columns, (tuple, list)) or not columns:
        what = "an empty one" if isinstance(columns, (tuple, list)) else type(columns).__name__
        raise TypeError(f"candidates: expected a tensor or a sequence of tensors, got {what}")
    names = ["candidates", *(f"candidates[{i}]" for i in range(1, len(columns)))]
    anchors, *rows = as_inputs(anchors=anchors, **dict(zip(names, columns, strict=True)))
    for name, x in zip(names, rows, strict=True):
        check_same_rows(name, x, "anchors", anchors)
    return anchors, rows[0], torch.stack(rows[1:]) if len(rows) > 1 else None


def _chosen(directions: Sequence[str], partition_mode: str) -> frozenset[str]:
    check_choice("partition_mode", partition_mode, ("joint", "per_direction"))
    if not isinstance(directions, (tuple, list, set, frozenset)):
        kind = type(directions).__name__
        raise TypeError(f"directions: expected a sequence of names, got {kind}")
    for direction in directions:
        check_choice("directions", direction, _DIRECTIONS)
    if "query_to_doc" not in directions:
        raise ValueError(
            f'directions: expected "query_to_doc", which has the positive, among {directions!r}'
        )
    chosen = frozenset(directions)
    if partition_mode == "per_direction" and not chosen <= {"query_to_doc", "doc_to_query"}:
        raise ValueError(
            'partition_mode: expected "joint" with "query_to_query" or "doc_to_doc", which have no '
            'positive of their own, got "per_direction"'
        )
    return chosen


def _strengths(mode: str | None, strength: float) -> tuple[float, float]:
    """How strong the weights of in-batch negatives and of own hard negatives are."""
    if mode is not None:
        check_choice("hardness_mode", mode, _MODES)
    check_number("hardness_strength", strength)
    if not 0 <= strength <= LARGEST:
        raise ValueError(f"hardness_strength: expected at least 0, got {strength}")
    in_batch = strength if mode in ("in_batch_negatives", "all_negatives") else 0.0
    return in_batch, strength if mode in ("hard_negatives", "all_negatives") else 0.0


class _Batch(NamedTuple):
    """Rows, and log-sum-exps over those of other ids."""

    queries: Tensor  # [B, D]
    docs: Tensor  # [B, D]
    hard: Tensor | None  # [K, B, D]
    ids: Tensor  # [B]
    scale: float | Tensor
    normalize: bool
    options: Mapping[str, Any]

    @classmethod
    def of(cls, anchors, positives, hard, ids, scale, normalize, backend) -> _Batch:
        options = {"compute_dtype": default_compute_dtype(anchors), "backend": backend}
        queries, docs = (float_rows(x, normalize=normalize) for x in (anchors, positives))
        if hard is not None:
            hard = float_rows(hard.flatten(0, 1), normalize=normalize).view(hard.shape)
        ids = the_batch().positions(len(queries), queries.device) if ids is None else ids
        return cls(queries, docs, hard, ids, scale, normalize, options)

    def negatives(self, directions: frozenset[str], in_batch: float, own: float) -> list[Tensor]:
        """Log-sum-exps of each query's negatives, [B] each: together of all directions, those of
        ``"query_to_doc"`` first."""
        everything = len(directions) == len(_DIRECTIONS) and not in_batch
        first, *others = self._gram() if everything else self._each(directions, in_batch)
        if self.hard is not None:
            first = union([first, self._own(self.hard, own)])
        return [first, *others]

    def _gram(self) -> list[Tensor]:
        """Of all directions: queries and documents are the rows of one symmetric matrix."""
        rows = torch.cat((self.queries, self.docs))
        return list(self._and_hard(self._among(rows), rows).split(len(self.queries)))

    def _each(self, directions: frozenset[str], strength: float) -> list[Tensor]:
        queries, docs = self.queries, self.docs
        if "doc_to_query" in directions and not strength:
            found = list(row_col_logsumexp(queries, docs, self.scale, **self._of(queries, docs)))
        else:
            found = [self._against(queries, docs, strength)]
            if "doc_to_query" in directions:
                found.append(self._against(docs, queries))
        found[0] = self._and_hard(found[0], queries, strength)
        if "query_to_query" in directions:
            found.append(self._among(queries))
        if "doc_to_doc" in directions:
            found.append(self._and_hard(self._among(docs), docs))
        return found

    def _own(self, hard: Tensor, strength: float) -> Tensor:
        """Of each query against its own hard negatives."""
        similarity = (self.queries * hard).sum(-1)  # [K, B]
        return (self.scale * similarity + strength * similarity.detach()).logsumexp(0)

    def _and_hard(self, lse: Tensor, rows: Tensor, strength: float = 0.0) -> Tensor:
        """Also of the rows against the hard negatives of others."""
        if self.hard is None:
            return lse
        return union([lse, self._against(rows, self.hard.flatten(0, 1), strength)])

    def _among(self, rows: Tensor) -> Tensor:
        return self_logsumexp(rows, self.scale, **self._of(rows, rows))

    def _against(self, rows: Tensor, keys: Tensor, strength: float = 0.0) -> Tensor:
        """With logits to which ``strength * similarity`` is added, without its gradient: that of
        the larger scale, times the smaller over the larger."""
        if not strength:
            return row_logsumexp(rows, keys, self.scale, **self._of(rows, keys))
        scale = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        stretch = 1 + strength / scale
        options = self._of(rows, keys, stretch)
        lse = row_logsumexp(rows, keys, self.scale * stretch, **options)
        return lse / stretch + lse.detach() * (1 - 1 / stretch)

    def _of(self, rows: Tensor, keys: Tensor, stretch: float | Tensor = 1.0) -> dict[str, Any]:
        """Options of a statistic of the pairs of different ids."""
        query_ids, key_ids = (
            self.ids.repeat(len(x) // max(len(self.ids), 1)) for x in (rows, keys)
        )
        where = PairFilter(query_ids, key_ids, "different")
        bound = logit_bound(self.normalize, scale=self.scale * stretch)
        return {**self.options, "where": where, "logit_bound": bound}
