"""InfoNCE with in-batch negatives, a queue, or negatives of each query's own."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._spread import spreading
from cl_kernels.checks import as_alike, as_bias, check_embeddings, check_indices
from cl_kernels.csr import Lists, as_csr
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    as_weights,
    check_choice,
    check_reduction,
    check_same_rows,
    check_smoothing,
    inverse,
    logit_bound,
    weighted_total,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.hardest import check_hardest, gathered_hardest
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.sets import Batch, Combine, losses_by_parts
from cl_kernels.pairs import Where, as_filters
from cl_kernels.ranks.group import Group
from cl_kernels.reading import readable


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    in_batch_negatives: bool | None = None,
    target: Lists | None = None,
    positives: Combine = "outside",
    negative_mask: Tensor | None = None,
    where: Where = (),
    negative_where: Where = (),
    key_bias: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    hardest: int | None = None,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of each query's positives against its negatives.

    Van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018),
    equation 4; with shared ``negative_keys`` the queue of He et al., "Momentum Contrast" (2020).

    Args:
        query: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        positive_key: Row i is the positive of query i, shape [B, D]; any [N, D] with ``target``.
        negative_keys: Negatives shared by all queries, shape [K, D], or each query's own,
            shape [B, K, D].
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        normalize: Divide rows by their length first (cosine similarity).
        in_batch_negatives: Whether the other rows of ``positive_key`` are negatives too. Default:
            only without ``negative_keys``.
        target: Indices into ``positive_key``: each query's positive, shape [B], or several of
            each, as [B, P] padded with -1, a ``CSR``, or lists.
        positives: How several positives of a query are combined; none of them is a negative of
            another. "outside": the mean of their cross-entropies, then that over the queries that
            have one. "inside": the cross-entropy of their summed probability. "pairs": every
            positive pair counts alike, as in pytorch-metric-learning.
        negative_mask: Which of each query's own negatives count, bool [B, K]; or how many of the
            first, integers [B]. Rows of padding count unless this leaves them out.
        where: At most two filters on the negatives: on the rows of ``positive_key`` if those are
            negatives, else on shared ``negative_keys``.
        negative_where: At most two filters on shared ``negative_keys``.
        key_bias: Added to the logits of the rows of ``positive_key``, shape [N]: minus the log of
            how often a sampler draws each (logQ correction: Yi et al., "Sampling-Bias-Corrected
            Neural Modeling for Large Corpus Item Recommendations", 2019, equation 3).
        weights: Of each query, shape [B].
        label_smoothing: The share of the target that is spread over all keys, as in
            ``F.cross_entropy``. Not together with filters or several positives.
        hardest: Count only this many negatives of each query, those with the largest logits (the
            most similar ones; the least similar if ``temperature`` is negative), found in the
            same call by ``topk``. Too few from the first step on may collapse the model: see
            ``MiningSchedule``. Default: all.
        reduction: ``"mean"`` (weighted) or ``"sum"`` over the queries that have a positive, or
            ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"`` (one for each pair of lists with
        ``positives="pairs"``); float32 (float64 for float64 inputs). A query without negatives
        has loss 0 and gradient 0; the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    if over_several(gather, group):
        return over_ranks(info_nce, locals())
    query, positive_key = as_inputs(query=query, positive_key=positive_key)
    check_reduction(reduction)
    hardest = check_hardest(hardest)
    if negative_keys is not None:
        _check_negative_keys(negative_keys, query)
        query, positive_key, negative_keys = as_alike(
            query=query, positive_key=positive_key, negative_keys=negative_keys
        )
    index, lists = _as_target(target, query, positive_key)
    check_choice("positives", positives, ("outside", "inside", "pairs"))
    counted = _counted(negative_mask, negative_keys)
    if in_batch_negatives is None:
        in_batch_negatives = negative_keys is None
    check_flag("in_batch_negatives", in_batch_negatives)
    shared = negative_keys is not None and negative_keys.dim() == 2
    filters = as_filters(where, most=2)
    of_further = as_filters(negative_where, most=2, name="negative_where")
    if filters and not in_batch_negatives:
        if not shared:
            given = "without" if negative_keys is None else "with each query's own"
            raise ValueError(f"where: expected no filter {given} negatives, got one")
        if of_further:
            raise ValueError("negative_where: expected no filter beside where, got one")
        filters, of_further = (), filters
    if of_further and not shared:
        raise ValueError("negative_where: expected no filter without shared keys, got one")
    bias = None
    if key_bias is not None:
        if hardest is not None:
            raise ValueError(f"hardest: expected None with key_bias, got {hardest}")
        bias = as_bias("key_bias", key_bias, query, positive_key.shape[0], "rows of positive_key")
    check_smoothing(
        label_smoothing, where=filters or of_further, hardest=hardest is not None,
        several_positives=lists is not None,
    )  # fmt: skip
    weights = as_weights(weights, query, query.shape[0], "queries")

    batch = Batch(
        query, positive_key, negative_keys, counted, index, lists, in_batch_negatives, filters,
        of_further, bias, inverse(temperature, query), normalize,
    )  # fmt: skip
    settings = {
        "logit_bound": logit_bound(normalize, temperature=temperature) if bias is None else None,
        "backend": backend,
    }
    each = reduction if weights is None else "none"
    loss = None if label_smoothing else _in_one_call(batch, hardest, reduction=each, **settings)
    if loss is None:
        return losses_by_parts(
            batch, hardest, positives, label_smoothing, weights, reduction, **settings
        )
    return loss if weights is None else weighted_total(loss, weights, reduction)


class InfoNCELoss(LossModule):
    """``info_nce`` as a module: ``loss(query, positive_key, negative_keys=None, *, target=None,
    negative_mask=None, where=(), negative_where=(), key_bias=None, weights=None)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned, and ``hardest`` may be set anew at any step, e.g. by a ``MiningSchedule``.
    """

    function = info_nce
    inputs = "query", "positive_key", "negative_keys"
    options = "target", "negative_mask", "where", "negative_where", "key_bias", "weights"


def _as_target(target: Lists | None, query: Tensor, positive_key: Tensor):
    """One index of each query, or None, and lists of several, or None."""
    if target is None:
        check_same_rows("positive_key", positive_key, "query", query)
        return None, None
    if isinstance(target, Tensor) and target.dim() == 1:
        check_indices("target", target, query, positive_key.shape[0])
        return target, None
    return None, as_csr("target", target, query.shape[0], positive_key.shape[0], query.device)


def _in_one_call(batch: Batch, hardest: int | None, **settings) -> Tensor | None:
    """The loss by ``contrast``, or None if its negatives are more than that takes."""
    query, positive, further, counted = batch[:4]
    scale, normalize, filters = batch.scale, batch.normalize, batch.filters
    if batch.lists is not None:
        return None
    if further is not None and further.dim() == 3:
        further = further.flatten(0, 1)
    if batch.in_batch and batch.target is None and hardest is None and _trained(positive):
        if batch.further_filters:
            return None
        recipe = Recipe("row_logsumexp", "softplus", normalize)
        vectors = {"key_bias": batch.key_bias}
        of_batch = filters, further, counted
        return contrast(recipe, query, positive, scale, *of_batch, vectors=vectors, **settings)
    if batch.key_bias is not None:
        return None
    if batch.in_batch and the_batch().parted:  # further keys are everybody's
        return None
    # All negatives in one set of keys, which need not be the positives'.
    only, filters = further, batch.further_filters
    if batch.in_batch:
        only = positive if further is None else None
        filters = (batch.not_the_positive(), *batch.filters)
    if only is not None and hardest is not None and counted is None:
        search = {"where": filters, "normalize": normalize}
        found = gathered_hardest(query, only, scale, hardest, backend=settings["backend"], **search)
        if found is not None:
            (only, counted), hardest, filters = found, None, ()
    # Of rows' losses nobody knows what their gradients will be multiplied by: by parts those of
    # frozen keys are made in one visit all the same.
    in_one_visit = settings["reduction"] != "none" or counted is not None
    if only is None or hardest is not None or not (in_one_visit or _trained(only)):
        return None
    recipe = Recipe("row_logsumexp", "softplus", normalize, in_batch=False)
    if batch.target is not None:
        positive = positive.index_select(0, batch.target)
    return contrast(recipe, query, positive, scale, filters, only, counted, **settings)


def _trained(key: Tensor) -> bool:
    """Whether the key's gradient is wanted; if not, the query's is made in the forward visit, but
    for keys of several processes."""
    spread = spreading.innermost() is not None
    return key.requires_grad or not torch.is_grad_enabled() or spread


def _check_negative_keys(negative_keys: Tensor, query: Tensor) -> None:
    own = isinstance(negative_keys, Tensor) and negative_keys.dim() == 3
    check_embeddings("negative_keys", negative_keys.flatten(0, 1) if own else negative_keys)
    if own and negative_keys.shape[0] != query.shape[0]:
        raise ValueError(
            f"negative_keys: expected [B, K, D] with B = {query.shape[0]}, "
            f"got shape {list(negative_keys.shape)}"
        )


def _counted(mask: Tensor | None, negative_keys: Tensor | None) -> Tensor | None:
    """Which of each query's own negatives count, bool [B, K], from a mask or from their numbers;
    None of shared ones."""
    if mask is None:
        if negative_keys is None or negative_keys.dim() == 2:
            return None
        return negative_keys.new_ones(negative_keys.shape[:2], dtype=torch.bool)
    if negative_keys is None or negative_keys.dim() != 3:
        raise ValueError("negative_mask: expected negative_keys of shape [B, K, D] with it")
    if not isinstance(mask, Tensor):
        raise TypeError(f"negative_mask: expected a tensor, got {type(mask).__name__}")
    if mask.device != negative_keys.device:
        raise ValueError(
            f"negative_mask: expected the device of query, {negative_keys.device}, "
            f"got {mask.device}"
        )
    B, K, _ = negative_keys.shape
    if mask.dtype == torch.bool and mask.shape == (B, K):
        return mask
    if mask.dtype in (torch.int64, torch.int32) and mask.shape == (B,):
        if readable(mask) and bool(((mask < 0) | (mask > K)).any()):
            wrong = mask[(mask < 0) | (mask > K)][0].item()
            raise ValueError(f"negative_mask: expected from 0 to {K} negatives, got {wrong}")
        return torch.arange(K, device=mask.device) < mask[:, None]
    raise ValueError(
        f"negative_mask: expected bool of shape [{B}, {K}] or integers of shape [{B}], "
        f"got {mask.dtype} of shape {list(mask.shape)}"
    )
