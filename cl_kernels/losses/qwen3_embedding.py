"""The loss of Qwen3 Embedding: InfoNCE with a mask against false negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._precision import accumulator
from cl_kernels.checks import as_alike, as_scalar, check_embeddings
from cl_kernels.losses.both_sides import joint, of_both, one_way, over_both_sides
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
    total,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.hardest import Negatives, own_similarity
from cl_kernels.losses.labels import as_labels
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.rows import float_rows


def qwen3_embedding(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.01,
    margin: float | Tensor | None = 0.1,
    mask_negatives: bool = False,
    ids: Tensor | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """InfoNCE against other documents, other queries and own hard negatives, less false negatives.

    Zhang et al., "Qwen3 Embedding: Advancing Text Embedding and Reranking Through Foundation
    Models" (2025), equation 1. The denominator of query i has its positive, its own hard
    negatives, and for every other row j the similarities of (query i, document j),
    (query i, query j) and (document i, document j), documents being the positives. One of these
    counts only if it is below the similarity of query i and its positive plus the margin. (In the
    paper the mask drops own hard negatives too: ``mask_negatives=True``.)

    Args:
        query: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        positive: Row i is the document of query i, shape [B, D], same dtype and device.
        negatives: Each query's own hard negatives, shape [B, K, D].
        temperature: A number other than zero, or a 0-d tensor that may require grad. The paper
            does not state its own.
        margin: How far a negative's similarity may be above the positive's, a number; None: there
            is no mask. No gradient flows to the bound.
        mask_negatives: Whether the mask is for own hard negatives as well.
        ids: Integers, shape [B]. Rows of the same id have the same document: they are no negatives
            of each other. Default: all differ.
        normalize: Divide rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over the queries, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        A query without negatives has loss 0 and gradient 0; the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = qwen3_embedding(queries, documents, hard_negatives, temperature=0.02)
    """
    if over_several(gather, group):
        return over_ranks(qwen3_embedding, locals())
    query, positive = as_inputs(query=query, positive=positive)
    check_same_rows("positive", positive, "query", query)
    if negatives is not None:
        _check_negatives(negatives, query)
        named = as_alike(query=query, positive=positive, negatives=negatives)
        query, positive, negatives = named
    check_flag("mask_negatives", mask_negatives)
    check_reduction(reduction)
    scale = inverse(temperature, query)
    margin = None if margin is None else as_scalar("margin", margin, query)
    bound = None if margin is None else _bound(query, positive, margin, normalize)
    where = [one_way(len(query), query.device)]
    if ids is not None:
        ids = of_both(as_labels("ids", ids, query, "query"))
        where.append(PairFilter(ids, ids, "different"))
    options = {"logit_bound": logit_bound(normalize, temperature=temperature), "backend": backend}
    sets = over_both_sides(
        query,
        positive,
        scale,
        tuple(where),
        normalize=normalize,
        vectors={} if bound is None else {"below": of_both(bound)},
        **options,
    )
    if negatives is not None:
        counted = _below(query, negatives, bound if mask_negatives else None, normalize)
        recipe = Recipe("row_logsumexp", "difference", normalize, in_batch=False)
        own = negatives.flatten(0, 1), counted
        lse = contrast(recipe, query, positive, scale, (), *own, reduction="none", **options)
        sets.append(lse)
    return total(joint(sets), reduction)


class Qwen3EmbeddingLoss(LossModule):
    """``qwen3_embedding`` as a module: ``loss(query, positive, negatives=None, *, ids=None)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = qwen3_embedding
    inputs = "query", "positive", "negatives"
    options = ("ids",)


def _check_negatives(negatives: Tensor, query: Tensor) -> None:
    if not isinstance(negatives, Tensor) or negatives.dim() != 3:
        got = list(negatives.shape) if isinstance(negatives, Tensor) else type(negatives).__name__
        raise ValueError(f"negatives: expected a tensor of shape [B, K, D], got {got}")
    check_embeddings("negatives", negatives.flatten(0, 1))
    check_same_rows("negatives", negatives, "query", query)


@torch.no_grad()
def _bound(query: Tensor, positive: Tensor, margin: float | Tensor, normalize: bool) -> Tensor:
    """How similar a negative may be to each query or document, [B]."""
    dtype = accumulator(query)
    query, positive = query.to(dtype), positive.to(dtype)
    if normalize:
        return F.cosine_similarity(query, positive).add_(margin)
    return (query * positive).sum(1).add_(margin)


@torch.no_grad()
def _below(query: Tensor, negatives: Tensor, bound: Tensor | None, normalize: bool) -> Tensor:
    """Which of each query's own negatives are less similar than its bound, bool [B, K]."""
    if bound is None:
        return negatives.new_ones(negatives.shape[:2], dtype=torch.bool)
    rows = float_rows(negatives.flatten(0, 1), normalize=normalize).view(negatives.shape)
    similarity = own_similarity(float_rows(query, normalize=normalize), Negatives(rows))
    return similarity < bound[:, None]
