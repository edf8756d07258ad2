"""The specification: dense, plain torch, as exact as the inputs' dtype allows.

Holds the M x N matrix, so it is for tests and for reading. A pair that is dropped contributes
exactly zero, whatever its embeddings hold; every other pair follows IEEE arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import accumulator


class Fold(NamedTuple):
    """``values(logits, dim)``, where dropped pairs are -inf, and ``weight(logits, value, grad)``:
    ``grad`` times the first value's derivative by each logit."""

    values: Callable[[Tensor, int], tuple[Tensor, ...]]
    weight: Callable[[Tensor, Tensor, Tensor], Tensor]


def softplus(logits: Tensor) -> Tensor:
    """Without the threshold of torch's own, beyond which that is the identity."""
    return logits.clamp_min(0) + (-logits.abs()).exp().log1p()


def _softmax(logits: Tensor, lse: Tensor, grad: Tensor) -> Tensor:
    """An empty row weighs nothing, whatever comes from upstream."""
    return torch.where(lse == -torch.inf, 0, grad * (logits - lse).exp())


FOLDS = {
    "logsumexp": Fold(lambda logits, dim: (logits.logsumexp(dim),), _softmax),
    "softplus_sum": Fold(
        lambda logits, dim: (softplus(logits).sum(dim),),
        lambda logits, value, grad: grad * logits.sigmoid(),
    ),
    "hinge_sum": Fold(
        lambda logits, dim: (logits.clamp_min(0).sum(dim), (logits > 0).sum(dim)),
        lambda logits, value, grad: grad * torch.where(logits > 0, 1, 0 * logits),
    ),
}


def unavailable() -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def refuses(request) -> str | None:
    return None


def _rounded(x: Tensor, compute_dtype: torch.dtype) -> Tensor:
    return x.to(compute_dtype).to(accumulator(x))


def _kept(pairs, similarity: Tensor) -> Tensor:
    kept = torch.ones_like(similarity, dtype=torch.bool)
    for query_ids, key_ids, same in pairs.filters:
        kept &= (query_ids[:, None] == key_ids[None, :]) == same
    if pairs.below is not None:
        kept &= similarity < pairs.below[:, None]
    if pairs.above is not None:
        kept &= similarity > pairs.above[:, None]
    if pairs.ceiling is not None:
        kept &= pairs.query_guide @ pairs.key_guide.T <= pairs.ceiling[:, None]
    return kept


class _Dense:
    """The dense logits of a call, [M, N], and which of them are kept."""

    def __init__(self, statistic, query, key, scale, call):
        key = query if key is None else key
        self.query, self.key = (_rounded(x, call.compute_dtype) for x in (query, key))
        similarity = self.query @ self.key.T
        self.kept = _kept(call.pairs, similarity)
        self.logits = scale * similarity
        if call.pairs.query_bias is not None:
            self.logits = self.logits + call.pairs.query_bias[:, None]
        if call.pairs.key_bias is not None:
            self.logits = self.logits + call.pairs.key_bias
        self.scale = scale
        self.fold = FOLDS[statistic.fold.name]
        self.dims = (1, 0) if statistic.sides == "row_col" else (1,)  # what each side sums over

    def values(self) -> tuple[Tensor, ...]:
        kept = self.logits.masked_fill(~self.kept, -torch.inf)
        return tuple(value for dim in self.dims for value in self.fold.values(kept, dim))

    def weights(self, grads, values) -> Tensor:
        """d(sum grads * values) / d logits."""
        total = torch.zeros_like(self.logits)
        for grad, value, dim in zip(grads, values, self.dims, strict=True):
            weight = self.fold.weight(self.logits, value.unsqueeze(dim), grad.unsqueeze(dim))
            total += torch.where(self.kept, weight, 0)
        return total


def _weighted_sum(weights: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """``weights @ rows``, where a dropped pair adds nothing even if its row is not finite."""
    finite = rows.isfinite().all(1)
    total = weights @ torch.where(finite[:, None], rows, 0)
    poisoned = (kept & ~finite).any(1)
    return total.masked_fill(poisoned[:, None], torch.nan)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, skipping rows of x that no kept pair touches (there y is zero, x anything)."""
    return torch.where(y == 0, 0, x * y).sum()


def forward(statistic, query, key, scale, call):
    return _Dense(statistic, query, key, scale, call).values()


def weighted_key(statistic, query, key, scale, call):
    dense = _Dense(statistic, query, key, scale, call)
    (values,) = dense.values()
    weights = dense.weights((torch.ones_like(values),), (values,))
    return values, _weighted_sum(weights, dense.kept, dense.key)


def backward(statistic, grads, values, query, key, scale, call, needs):
    dense = _Dense(statistic, query, key, scale, call)
    weights = dense.weights(grads, values)
    a = _weighted_sum(weights, dense.kept, dense.key)  # [M, D]
    b = _weighted_sum(weights.T, dense.kept.T, dense.query)  # [N, D]
    needs_query, needs_key, needs_query_bias, needs_key_bias = needs
    grad_scale = _inner(dense.query, a) if needs_query else _inner(dense.key, b)
    grad_query, grad_key = scale * a, scale * b
    if statistic.of_one:
        grad_query, needs_key = grad_query + grad_key, False
    gradients = grad_query, grad_key, grad_scale, weights.sum(1), weights.sum(0)
    wanted = needs_query, needs_key, True, needs_query_bias, needs_key_bias
    return tuple(g if w else g.new_empty(0) for g, w in zip(gradients, wanted, strict=True))


def topk(query, key, k, query_factor, key_factor, exclude_offsets, exclude_keys, pairs):
    M, N = len(query), len(key)
    scores = _rounded(query, query.dtype) @ _rounded(key, key.dtype).T  # [M, N]
    if key_factor is not None:
        scores = scores * key_factor
    if query_factor is not None:
        scores = scores * query_factor[:, None]
    kept = _kept(pairs, scores) & (scores > -torch.inf)
    if exclude_offsets is not None:
        rows = torch.arange(M, device=query.device).repeat_interleave(exclude_offsets.diff())
        inside = (exclude_keys >= 0) & (exclude_keys < N)
        kept[rows[inside], exclude_keys[inside]] = False
    scores = torch.where(kept, scores, -torch.inf) + 0.0  # -0 counts as +0
    values, indices = scores.sort(dim=1, descending=True, stable=True)
    indices = indices.masked_fill(values == -torch.inf, -1)
    missing = (0, max(0, k - N))
    return (
        torch.nn.functional.pad(values[:, :k], missing, value=-torch.inf),
        torch.nn.functional.pad(indices[:, :k], missing, value=-1),
    )
