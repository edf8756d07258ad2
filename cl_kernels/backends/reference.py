"""The specification: dense, plain torch, as exact as the inputs' dtype allows.

Holds the M x N matrix, so it is for tests and for reading. A pair that a filter drops contributes
exactly zero, whatever its embeddings hold; every other pair follows IEEE arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels._precision import accumulator


def unavailable() -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _rounded(x: Tensor, compute_dtype: torch.dtype) -> Tensor:
    return x.to(compute_dtype).to(accumulator(x))


def _kept(query_ids, key_ids, keep_same, M: int, N: int, device) -> Tensor:
    kept = torch.ones(M, N, dtype=torch.bool, device=device)
    for q, k, same in zip(query_ids, key_ids, keep_same, strict=True):
        kept &= (q[:, None] == k[None, :]) == same
    return kept


class _Pairs:
    """The dense logits of a call, [M, N], and which of them are kept."""

    def __init__(self, query, key, scale, query_ids, key_ids, keep_same, *options):
        compute_dtype = options[4]
        self.query = _rounded(query, compute_dtype)
        self.key = _rounded(key, compute_dtype)
        self.kept = _kept(query_ids, key_ids, keep_same, len(query), len(key), query.device)
        self.logits = scale * (self.query @ self.key.T)
        self.scale = scale

    def logsumexp(self, dim: int) -> Tensor:
        return self.logits.masked_fill(~self.kept, -torch.inf).logsumexp(dim)

    def weights(self, grad: Tensor, lse: Tensor, dim: int) -> Tensor:
        """d(sum grad * lse) / d logits, where lse is taken over ``dim``."""
        grad, lse = grad.unsqueeze(dim), lse.unsqueeze(dim)
        return torch.where(self.kept & (lse != -torch.inf), grad * (self.logits - lse).exp(), 0)


def _weighted_sum(weights: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """``weights @ rows``, where a dropped pair adds nothing even if its row is not finite."""
    finite = rows.isfinite().all(1)
    total = weights @ torch.where(finite[:, None], rows, 0)
    poisoned = (kept & ~finite).any(1)
    return total.masked_fill(poisoned[:, None], torch.nan)


def _gradients(pairs: _Pairs, weights: Tensor, need_query: bool, need_key: bool):
    a = _weighted_sum(weights, pairs.kept, pairs.key)  # [M, D]
    b = _weighted_sum(weights.T, pairs.kept.T, pairs.query)  # [N, D]
    grad_scale = _inner(pairs.query, a) if need_query else _inner(pairs.key, b)
    return (
        pairs.scale * a if need_query else a.new_empty(0),
        pairs.scale * b if need_key else b.new_empty(0),
        grad_scale,
    )


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, skipping rows of x that no kept pair touches (there y is zero, x anything)."""
    return torch.where(y == 0, 0, x * y).sum()


def row_logsumexp(query, key, scale, *options):
    return _Pairs(query, key, scale, *options).logsumexp(1)


def row_logsumexp_mean_key(query, key, scale, *options):
    pairs = _Pairs(query, key, scale, *options)
    lse = pairs.logsumexp(1)
    weights = pairs.weights(torch.ones_like(lse), lse, 1)
    return lse, _weighted_sum(weights, pairs.kept, pairs.key)


def row_logsumexp_backward(grad, lse, query, key, scale, *options):
    *options, need_query, need_key = options
    pairs = _Pairs(query, key, scale, *options)
    return _gradients(pairs, pairs.weights(grad, lse, 1), need_query, need_key)


def row_col_logsumexp(query, key, scale, *options):
    pairs = _Pairs(query, key, scale, *options)
    return pairs.logsumexp(1), pairs.logsumexp(0)


def row_col_logsumexp_backward(grad_row, grad_col, row, col, query, key, scale, *options):
    *options, need_query, need_key = options
    pairs = _Pairs(query, key, scale, *options)
    weights = pairs.weights(grad_row, row, 1) + pairs.weights(grad_col, col, 0)
    return _gradients(pairs, weights, need_query, need_key)


def self_logsumexp(x, scale, *options):
    return row_logsumexp(x, x, scale, *options)


def self_logsumexp_backward(grad, lse, x, scale, *options):
    grad_query, grad_key, grad_scale = row_logsumexp_backward(
        grad, lse, x, x, scale, *options, True, True
    )
    return grad_query + grad_key, grad_scale


def topk(
    query, key, k, query_factor, key_factor, query_ids, key_ids, keep_same,
    exclude_offsets, exclude_keys, below, above,
):  # fmt: skip
    M, N = len(query), len(key)
    scores = _rounded(query, query.dtype) @ _rounded(key, key.dtype).T  # [M, N]
    if key_factor is not None:
        scores = scores * key_factor
    if query_factor is not None:
        scores = scores * query_factor[:, None]
    kept = _kept(query_ids, key_ids, keep_same, M, N, query.device) & (scores > -torch.inf)
    if below is not None:
        kept &= scores < below[:, None]
    if above is not None:
        kept &= scores > above[:, None]
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
