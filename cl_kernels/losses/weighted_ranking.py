"""Queries against documents and hard negatives, whose logits may be weighted by their hardness."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import logit_bound, union
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step, times
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.pairs import PairFilter


class Strengths(NamedTuple):
    """What is added to logits, times their similarity and without its gradient.

    Args:
        others: To those of documents of other anchors.
        own: To those of an anchor's own hard negatives.
    """

    others: float
    own: float


def weighted_ranking(
    anchors: Tensor,
    positives: Tensor,
    hard: Tensor | None,
    ids: Tensor | None,
    scale: float | Tensor,
    strengths: Strengths,
    *,
    normalize: bool,
    reduction: str,
    backend: str | None,
) -> Tensor:
    """The loss of each anchor's document against those of other ids, and against hard negatives
    [K, B, D]: its own and those of other ids."""
    if ids is None:
        ids = the_batch().positions(anchors.shape[0], anchors.device)
    docs, of_docs = positives, ids
    if hard is not None:
        docs = torch.cat((positives, hard.flatten(0, 1)))
        of_docs = ids.repeat(1 + hard.shape[0])
    bound = logit_bound(normalize, scale=scale + strengths.others)
    others = PairFilter(ids, of_docs, "different")
    options: dict[str, Any] = {"logit_bound": bound, "backend": backend}
    columns = 1 if hard is None else 1 + hard.shape[0]
    settings = visit("row_logsumexp", anchors, docs, others, **options), strengths, columns
    return _ranked((anchors, docs), (scale,), settings, normalize, reduction)


@one_step
def _ranked(
    queries: Embeddings,
    docs: Embeddings,
    scale: Tensor,
    others: Visit,
    strengths: Strengths,
    columns: int,
) -> tuple[Tensor, Pull]:
    stretched = scale + strengths.others
    streamed = Streamed(others, queries, docs, stretched)
    pairs = docs.rows.view(columns, *queries.rows.shape)
    of_pairs = (pairs * queries.rows).sum(-1)  # [columns, B]: the positives' first
    similarity, of_own = of_pairs[0], of_pairs[1:]
    parts, logits = [streamed.value], None
    if columns > 1:
        logits = (scale + strengths.own) * of_own
        parts.append(logits.logsumexp(0))
    lse = union(parts)
    gap = lse - scale * similarity

    def pull(grad: Tensor | None) -> tuple[Tensor]:
        by_gap = times(grad, gap.sigmoid())
        by_others = by_gap if logits is None else by_gap * (streamed.value - lse).exp()
        share = scale / stretched  # of a logit that is its gradient's
        of_scale = streamed.pull(by_others * share) / share - torch.dot(by_gap, similarity)
        weights = (-scale * by_gap)[None]
        if logits is not None:
            by_own = by_gap * (logits - lse).exp()
            of_scale = of_scale + (by_own * of_own).sum()
            weights = torch.cat((weights, scale * by_own))
        weights = weights[..., None]
        if queries.trained:
            queries.add((weights * pairs).sum(0))
        if docs.trained:
            docs.add((weights * queries.rows).flatten(0, 1))
        return (of_scale,)

    return F.softplus(gap, threshold=40), pull
