"""Losses over several sets of negatives and several positives, from one statistic of each set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import default_compute_dtype, number_tensor
from cl_kernels.csr import CSR
from cl_kernels.losses import epilogues
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import in_full, union, weighted_total
from cl_kernels.losses.hardest import Negatives, hardest_logsumexp, logsumexp_of, own_similarity
from cl_kernels.losses.labels import segment_logsumexp, total_of
from cl_kernels.pairs import PairFilter
from cl_kernels.statistics.functions import row_logsumexp
from cl_kernels.statistics.rows import float_rows

Combine = Literal["outside", "inside", "pairs"]

_FEW = 1 << 20  # logits that may be held at once


class Batch(NamedTuple):
    """Queries, and what they are compared with.

    Args:
        query: [B, D].
        positive_key: [N, D].
        negative_keys: Shared [K, D], or each query's own [B, K, D].
        counted: Which of each query's own negatives count, bool [B, K].
        target: Each query's positive among the keys, [B]. Default: the same row.
        lists: Instead, several positives of each.
        in_batch: Whether the other rows of ``positive_key`` are negatives.
        filters: On the rows of ``positive_key``.
        further_filters: On shared ``negative_keys``.
        key_bias: Added to the logits of ``positive_key``, [N].
        scale: Inverse temperature.
        normalize: Whether rows are divided by their length.
    """

    query: Tensor
    positive_key: Tensor
    negative_keys: Tensor | None
    counted: Tensor | None
    target: Tensor | None
    lists: CSR | None
    in_batch: bool
    filters: tuple[PairFilter, ...]
    further_filters: tuple[PairFilter, ...]
    key_bias: Tensor | None
    scale: float | Tensor
    normalize: bool

    def not_the_positive(self) -> PairFilter:
        """On the rows of ``positive_key``, of one positive each."""
        ids = the_batch().positions(self.positive_key.shape[0], self.positive_key.device)
        own = ids if self.target is None else ids.index_select(0, self.target)
        return PairFilter(own, ids, "different")

    def in_float(self) -> Batch:
        """With differentiable rows as the losses take them."""
        query, positive = (
            float_rows(x, normalize=self.normalize) for x in (self.query, self.positive_key)
        )
        further = self.negative_keys
        if further is not None:
            rows = further.flatten(0, -2)
            if self.counted is not None:  # what padding holds is of no concern
                rows = rows.masked_fill(~self.counted.view(-1, 1), 0)
            further = float_rows(rows, normalize=self.normalize).view(further.shape)
        return self._replace(query=query, positive_key=positive, negative_keys=further)


def losses_by_parts(
    batch: Batch,
    hardest: int | None,
    positives: Combine,
    label_smoothing: float,
    weights: Tensor | None,
    reduction: str,
    logit_bound: float | None,
    backend: str | None,
) -> Tensor:
    """The reduced loss of a batch, whatever its sets."""
    statistic = {"compute_dtype": default_compute_dtype(batch.query), "backend": backend}
    batch = batch.in_float()
    negatives = _negatives(batch, hardest, logit_bound, statistic)
    if batch.lists is not None:
        return _of_lists(batch, batch.lists, negatives, positives, weights, reduction)
    positive = _logits(batch, None, batch.target)
    losses = epilogues.softplus(negatives, positive)
    if label_smoothing:
        losses = losses + label_smoothing * (positive - _mean_logit(batch, positive))
    return weighted_total(losses, weights, reduction)


def _logits(batch: Batch, rows: Tensor | None, keys: Tensor | None) -> Tensor:
    """Of pairs of these queries (default: all) and rows of ``positive_key`` (the same)."""
    # Indexing would add up the gradients of a row that is in several pairs in any order.
    query = batch.query if rows is None else batch.query.index_select(0, rows)
    key = batch.positive_key if keys is None else batch.positive_key.index_select(0, keys)
    logits = batch.scale * (query * key).sum(1)
    if batch.key_bias is None:
        return logits
    return logits + (batch.key_bias if keys is None else batch.key_bias.index_select(0, keys))


def _negatives(batch: Batch, hardest: int | None, logit_bound, statistic) -> Tensor:
    """Log-sum-exp of each query over all its negatives; -inf over none."""
    of_batch = _exclusion(batch) if batch.in_batch else None
    if batch.in_batch and of_batch is None:  # some keys are positives of several queries
        assert batch.lists is not None
        if hardest is not None:
            raise ValueError(
                f"hardest: expected None with positives that queries share in part, got {hardest}"
            )
        parts = [_without_lists(batch, batch.lists)]
        if the_batch().parted:
            others = _of_other_processes(batch), *batch.filters
            parts.append(_shared(batch, batch.positive_key, others, batch.key_bias, statistic))
    else:
        parts = []
    if hardest is not None:
        sets = []
        if of_batch:
            where = of_batch, *batch.filters
            sets.append(Negatives(batch.positive_key, where, of_batch=True))
        if batch.negative_keys is not None:
            sets.append(Negatives(batch.negative_keys, batch.further_filters, batch.counted))
        if sets:
            return hardest_logsumexp(batch.query, sets, batch.scale, hardest, **statistic)
    else:
        statistic = statistic | {"logit_bound": logit_bound}
        if of_batch is not None:
            where = of_batch, *batch.filters
            parts.append(_shared(batch, batch.positive_key, where, batch.key_bias, statistic))
        if batch.negative_keys is not None:
            parts.append(_further(batch, batch.negative_keys, statistic))
    if not parts:
        return batch.query.new_full(batch.query.shape[:1], -torch.inf)
    return union(parts)


def _shared(batch: Batch, keys: Tensor, where, key_bias: Tensor | None, statistic) -> Tensor:
    biased: dict[str, Any] = {} if key_bias is None else {"key_bias": key_bias}
    return row_logsumexp(batch.query, keys, batch.scale, where=where, **biased, **statistic)


def _further(batch: Batch, keys: Tensor, statistic) -> Tensor:
    """Over shared negatives, or over each query's own: there is no tile to share."""
    if keys.dim() == 2:
        with the_batch().everybodys():
            return _shared(batch, keys, batch.further_filters, None, statistic)
    similarity = own_similarity(batch.query, Negatives(keys))
    return logsumexp_of(batch.scale * similarity, batch.counted)


def _mean_logit(batch: Batch, positive: Tensor) -> Tensor:
    """Over all keys of each query, [B]: similarities are linear, so it takes the keys' sum."""
    if batch.in_batch:
        every = the_batch()
        total = batch.scale * (batch.query * every.sum(batch.positive_key.sum(0))).sum(1)
        if batch.key_bias is not None:
            total = total + every.sum(batch.key_bias.sum())
        count = torch.full_like(positive, every.count(batch.positive_key.shape[0]))
    else:
        total, count = positive, torch.ones_like(positive)
    further = batch.negative_keys
    if further is None:
        return total / count
    if further.dim() == 2:
        of_further = batch.scale * (batch.query * further.sum(0)).sum(1)
        return (total + of_further) / (count + further.shape[0])
    assert batch.counted is not None
    logits = batch.scale * own_similarity(batch.query, Negatives(further))
    total = total + torch.where(batch.counted, logits, 0).sum(1)
    return total / (count + batch.counted.sum(1))


# Several positives


def _of_lists(batch: Batch, lists: CSR, negatives, positives: Combine, weights, reduction: str):
    rows, counts = lists.rows(), lists.counts()
    logits = _logits(batch, rows, lists.keys)
    if positives == "inside":
        losses = epilogues.softplus(negatives, segment_logsumexp(logits, rows, len(counts)))
    else:
        pairs = epilogues.softplus(negatives.index_select(0, rows), logits)
        if positives == "pairs":
            weights = None if weights is None else weights.index_select(0, rows)
            return weighted_total(pairs, weights, reduction)
        losses = torch.zeros_like(negatives).index_add(0, rows, pairs) / counts.clamp_min(1)
    counted = counts > 0
    if weights is None:
        return total_of(losses, counted, reduction)
    return weighted_total(torch.where(counted, losses, 0), weights * counted, reduction)


def _exclusion(batch: Batch) -> PairFilter | None:
    """The filter that keeps no query's own positives, if ids can say it: where queries that have
    one positive in common have all of them in common."""
    if batch.lists is None:
        return batch.not_the_positive()
    rows, keys, count = batch.lists.rows(), batch.lists.keys, batch.positive_key.shape[0]
    # A list's id is its smallest key; no list has -1, and no key -2.
    of_query = keys.new_full((len(batch.query),), count).scatter_reduce(0, rows, keys, "amin")
    of_pair = of_query.index_select(0, rows)
    none = keys.new_full((count,), -1)
    of_key = none.scatter_reduce(0, keys, of_pair, "amax")
    shared = bool((of_key.index_select(0, keys) != of_pair).any())
    sizes = torch.bincount(of_key[of_key >= 0], minlength=count + 1)
    if shared or bool((sizes[of_query] != batch.lists.counts()).any()):
        return None
    of_query = of_query.masked_fill(of_query == count, -2)
    if the_batch().parted and count:
        ids = the_batch().positions(count, keys.device)
        of_query, of_key = (torch.where(x < 0, x, ids[x.clamp_min(0)]) for x in (of_query, of_key))
    return PairFilter(of_query, of_key, "different")


def _of_other_processes(batch: Batch) -> PairFilter:
    """Keeps the pairs of rows that are here and rows that are not."""
    here = the_batch().positions(1, batch.query.device)
    query_ids, key_ids = (here.expand(len(x)) for x in (batch.query, batch.positive_key))
    return PairFilter(query_ids, key_ids, "different")


def _without_lists(batch: Batch, lists: CSR) -> Tensor:
    """Log-sum-exp over the keys that no query's list names, some queries at a time: lists that
    overlap are no ids."""
    filters = tuple((f.query_ids, f.key_ids, f.keep == "same") for f in batch.filters)
    scale = number_tensor(batch.scale, batch.query)
    return _but_for_lists(batch.query, batch.positive_key, scale, batch.key_bias, *lists, filters)


@in_graph
def _but_for_lists(query, key, scale, bias, offsets, keys, filters) -> Tensor:
    return differentiable(_ButForLists, query, key, scale, bias, offsets, keys, filters)


class _ButForLists(torch.autograd.Function):
    """Makes some rows of logits at a time, again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *arguments):
        query, key, scale, bias, offsets, keys, filters = arguments
        lse = query.new_empty(query.shape[0])
        for part, logits, _ in _parts_of_logits(*arguments):
            lse[part] = logsumexp_of(logits, logits != -torch.inf)
        ids = [x for query_ids, key_ids, _ in filters for x in (query_ids, key_ids)]
        ctx.save_for_backward(lse, query, key, scale, bias, offsets, keys, *ids)
        ctx.keeps = [same for *_, same in filters]
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        lse, query, key, scale, bias, offsets, keys, *ids = ctx.saved_tensors
        filters = tuple(zip(ids[::2], ids[1::2], ctx.keeps, strict=True))
        of_query, of_key, of_scale = map(torch.zeros_like, (query, key, scale))
        of_bias = None if bias is None else torch.zeros_like(bias)
        grad = grads[0].masked_fill(lse == -torch.inf, 0)
        top = lse.masked_fill(lse == -torch.inf, 0)
        inputs = query, key, scale, bias, offsets, keys, filters
        for part, logits, similarity in _parts_of_logits(*inputs):
            weight = logits.sub_(top[part, None]).exp_().mul_(grad[part, None])
            of_scale += (weight * similarity).sum()
            if of_bias is not None:
                of_bias += weight.sum(0)
            weight *= scale
            of_query[part] = in_full(weight, key)
            of_key += in_full(weight.T, query[part])
        return of_query, of_key, of_scale, of_bias, None, None, None


def _parts_of_logits(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor | None, offsets, keys, filters
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Of some queries at a time the logits, -inf of dropped pairs, and the similarities."""
    rows, step = CSR(offsets, keys).rows(), max(1, _FEW // max(key.shape[0], 1))
    for start in range(0, query.shape[0], step):
        part = slice(start, min(start + step, query.shape[0]))
        similarity = in_full(query[part], key.T)
        logits = scale * similarity
        logits = logits if bias is None else logits + bias
        own = slice(int(offsets[part.start]), int(offsets[part.stop]))
        logits[rows[own] - start, keys[own]] = -torch.inf
        for query_ids, key_ids, same in filters:
            kept = (query_ids[part, None] == key_ids) == same
            logits.masked_fill_(~kept, -torch.inf)
        yield part, logits, similarity
