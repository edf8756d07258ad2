"""InfoNCE with in-batch negatives, a queue, or negatives of each query's own."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_alike, check_embeddings, check_indices
from cl_kernels.losses import epilogues
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
from cl_kernels.losses.hardest import (
    Negatives,
    check_hardest,
    gathered_hardest,
    hardest_logsumexp,
    logsumexp_of,
    own_similarity,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.pairs import PairFilter, Where, as_filters
from cl_kernels.reading import readable
from cl_kernels.statistics.functions import row_logsumexp
from cl_kernels.statistics.positives import pair_logits
from cl_kernels.statistics.rows import float_rows


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    in_batch_negatives: bool | None = None,
    target: Tensor | None = None,
    negative_mask: Tensor | None = None,
    where: Where = (),
    hardest: int | None = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Cross-entropy of each query's positive against its negatives.

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
        target: Index into ``positive_key`` of each query's positive, shape [B].
        negative_mask: Which of each query's own negatives count, bool [B, K]; or how many of the
            first, integers [B]. Rows of padding count unless this leaves them out.
        where: Filters on the negatives: on the rows of ``positive_key`` if those are negatives
            (at most one filter), else on shared ``negative_keys`` (at most two).
        hardest: Count only this many negatives of each query, those with the largest logits (the
            most similar ones; the least similar if ``temperature`` is negative), found in the
            same call by ``topk``. Too few from the first step on may collapse the model: see
            ``MiningSchedule``. Default: all.
        reduction: ``"mean"`` or ``"sum"`` over the queries, or ``"none"``.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        A query without negatives has loss 0 and gradient 0; the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    query, positive_key = as_inputs(query=query, positive_key=positive_key)
    check_reduction(reduction)
    hardest = check_hardest(hardest)
    if target is None:
        check_same_rows("positive_key", positive_key, "query", query)
    else:
        check_indices("target", target, query, positive_key.shape[0])
    if negative_keys is not None:
        _check_negative_keys(negative_keys, query)
        query, positive_key, negative_keys = as_alike(
            query=query, positive_key=positive_key, negative_keys=negative_keys
        )
    counted = _counted(negative_mask, negative_keys)
    if in_batch_negatives is None:
        in_batch_negatives = negative_keys is None
    check_flag("in_batch_negatives", in_batch_negatives)
    shared = negative_keys is not None and negative_keys.dim() == 2
    filters = as_filters(where, most=1 if in_batch_negatives else 2)
    if filters and not (in_batch_negatives or shared):
        given = "without negatives" if negative_keys is None else "with each query's own negatives"
        raise ValueError(f"where: expected no filter {given}, got one")

    batch = _Batch(
        query, positive_key, negative_keys, counted, target, in_batch_negatives, filters,
        inverse(temperature, query), normalize,
    )  # fmt: skip
    settings = {
        "logit_bound": logit_bound(normalize, temperature=temperature),
        "reduction": reduction,
        "backend": backend,
    }
    loss = _in_one_call(batch, hardest, **settings)
    return _by_parts(batch, hardest, **settings) if loss is None else loss


class InfoNCELoss(LossModule):
    """``info_nce`` as a module: ``loss(query, positive_key, negative_keys=None, *, target=None,
    negative_mask=None, where=())``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned, and ``hardest`` may be set anew at any step, e.g. by a ``MiningSchedule``.
    """

    function = info_nce
    inputs = "query", "positive_key", "negative_keys"
    options = "target", "negative_mask", "where"


class _Batch(NamedTuple):
    query: Tensor
    positive_key: Tensor
    negative_keys: Tensor | None
    counted: Tensor | None  # of each query's own negatives, which count
    target: Tensor | None
    in_batch: bool
    filters: tuple[PairFilter, ...]
    scale: float | Tensor
    normalize: bool

    @property
    def not_the_positive(self) -> PairFilter:
        """On the rows of ``positive_key``."""
        ids = torch.arange(self.positive_key.shape[0], device=self.positive_key.device)
        return PairFilter(ids if self.target is None else self.target, ids, "different")


def _in_one_call(batch: _Batch, hardest: int | None, **settings) -> Tensor | None:
    """The loss by ``contrast``, or None if its negatives are more than that takes."""
    query, positive, further, counted, target, in_batch, filters, scale, normalize = batch
    if further is not None and further.dim() == 3:
        further = further.flatten(0, 1)
    if in_batch and target is None and hardest is None and _trained(positive):
        recipe = Recipe("row_logsumexp", "softplus", normalize)
        return contrast(recipe, query, positive, scale, filters, further, counted, **settings)
    # All negatives in one set of keys, which need not be the positives'.
    only = further
    if in_batch:
        only = positive if further is None else None
        filters = (batch.not_the_positive, *filters)
    if only is not None and hardest is not None and counted is None:
        search = {"where": filters, "normalize": normalize}
        found = gathered_hardest(query, only, scale, hardest, backend=settings["backend"], **search)
        if found is not None:
            (only, counted), hardest, filters = found, None, ()
    # Of rows' losses nobody knows what their gradients will be multiplied by: ``_by_parts`` makes
    # those of frozen keys in one visit all the same.
    in_one_visit = settings["reduction"] != "none" or counted is not None
    if only is None or hardest is not None or not (in_one_visit or _trained(only)):
        return None
    recipe = Recipe("row_logsumexp", "softplus", normalize, in_batch=False)
    positive = positive if target is None else positive.index_select(0, target)
    return contrast(recipe, query, positive, scale, filters, only, counted, **settings)


def _by_parts(batch: _Batch, hardest: int | None, logit_bound, reduction, backend) -> Tensor:
    """The loss from statistics of each set of negatives."""
    queries = float_rows(batch.query, normalize=batch.normalize)  # [B, D]
    keys = float_rows(batch.positive_key, normalize=batch.normalize)  # [N, D]
    sets, filters = [], batch.filters  # of negatives, with the filters on them
    if batch.in_batch:
        sets.append(Negatives(keys, (batch.not_the_positive, *filters)))
        filters = ()
    if batch.negative_keys is not None:
        sets.append(_further(batch.negative_keys, batch.counted, filters, batch.normalize))
    statistic = {"compute_dtype": default_compute_dtype(batch.query), "backend": backend}
    if hardest is not None and sets:
        negatives = hardest_logsumexp(queries, sets, batch.scale, hardest, **statistic)
    else:
        negatives = _union(queries, sets, batch.scale, logit_bound=logit_bound, **statistic)
    # Indexing would add up the gradients of a row that is the target of several in any order.
    positives = keys if batch.target is None else keys.index_select(0, batch.target)
    positive = pair_logits(queries, positives, batch.scale)
    return total(epilogues.softplus(negatives, positive), reduction)


def _further(
    negative_keys: Tensor,
    counted: Tensor | None,
    filters: tuple[PairFilter, ...],
    normalize: bool,
) -> Negatives:
    rows = negative_keys.flatten(0, -2)
    if counted is not None:  # what padding holds is of no concern
        rows = rows.masked_fill(~counted.view(-1, 1), 0)
    further = float_rows(rows, normalize=normalize)
    return Negatives(further.view(negative_keys.shape), filters, counted)


def _union(queries: Tensor, sets: list[Negatives], scale, **statistic) -> Tensor:
    """Log-sum-exps over all sets, -inf over none."""
    if not sets:
        return queries.new_full(queries.shape[:1], -torch.inf)
    return reduce(torch.logaddexp, (_logsumexp(queries, x, scale, **statistic) for x in sets))


def _trained(key: Tensor) -> bool:
    """Whether the key's gradient is wanted; if not, the query's is made in the forward visit."""
    return key.requires_grad or not torch.is_grad_enabled()


def _logsumexp(queries: Tensor, negatives: Negatives, scale, **statistic) -> Tensor:
    """Over shared negatives, or over each query's own: there is no tile to share."""
    if negatives.keys.dim() == 2:
        return row_logsumexp(queries, negatives.keys, scale, where=negatives.where, **statistic)
    similarity = own_similarity(queries, negatives)
    return logsumexp_of(scale * similarity, negatives.counted)


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
