"""Scores of the pairs that a search found, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._ops import define
from cl_kernels._precision import accumulator
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable

from .scores import factors

_GATHERED = 1 << 22  # numbers gathered at a time


@in_graph
def found_scores(
    query: Tensor, key: Tensor, values: Tensor, indices: Tensor, normalize: bool
) -> Tensor:
    """``values``, with the gradient of the pairs' products (of their cosines if ``normalize``)."""
    return differentiable(_FoundScores, query, key, values, indices, normalize)


class _FoundScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, values, indices, normalize):
        ctx.save_for_backward(query, key, indices)
        ctx.normalize = normalize
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        query, key, indices = ctx.saved_tensors
        needs_query, needs_key = ctx.needs_input_grad[:2]
        grad_query, grad_key = found_gradients(
            grads[0], query, key, indices, ctx.normalize, needs_query, needs_key
        )
        return (
            grad_query if needs_query else None,
            grad_key if needs_key else None,
            None,
            None,
            None,
        )


def _parts(count: int, of_one: int) -> list[slice]:
    rows = max(1, _GATHERED // max(1, of_one))
    return [slice(first, first + rows) for first in range(0, count, rows)]


def _compute_gradients(grad, query, key, indices, normalize, need_query, need_key):
    dtype = accumulator(query)
    grad_query = torch.zeros_like(query, dtype=dtype) if need_query else query.new_empty(0)
    grad_key = torch.zeros_like(key, dtype=dtype) if need_key else key.new_empty(0)
    grad = grad.masked_fill(indices < 0, 0)
    indices = indices.clamp_min(0)
    for part in _parts(len(query) if len(key) else 0, indices.shape[1] * query.shape[1]):
        keys = key[indices[part].to(key.device)]  # [m, k, D]; they may be on the host
        of_query, of_keys = _pair_gradients(
            query[part].to(dtype), keys.to(query.device, dtype), grad[part], normalize
        )
        if need_query:
            grad_query[part] = of_query
        if need_key:
            grad_key.index_add_(0, indices[part].flatten(), of_keys.flatten(0, 1))
    return grad_query.to(query.dtype), grad_key.to(key.dtype)


def _gradients_fake(grad, query, key, indices, normalize, need_query, need_key):
    return (
        torch.empty_like(query) if need_query else query.new_empty(0),
        torch.empty_like(key) if need_key else key.new_empty(0),
    )


found_gradients = define(
    "found_gradients(Tensor grad, Tensor query, Tensor key, Tensor indices, bool normalize,"
    " bool need_query, bool need_key) -> (Tensor, Tensor)",
    _compute_gradients,
    _gradients_fake,
)


def _pair_gradients(
    query: Tensor, keys: Tensor, grad: Tensor, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of <query[i], keys[i, j]> (of cosines under ``normalize``): [m, D], [m, k, D]."""
    # A place that was not filled has no gradient, whatever stands in for its key, and a query
    # that found nothing has none, even if it is not a number.
    unfilled = (grad == 0)[..., None]
    keys = keys.masked_fill(unfilled, 0)
    query = query.masked_fill(unfilled.all(1), 0)
    if not normalize:
        return (grad[:, None] @ keys).squeeze(1), grad[..., None] * query[:, None]
    query_factor, key_factor = factors(query)[:, None], factors(keys)[..., None]
    query, keys = query * query_factor, keys * key_factor
    along = grad * (keys @ query[..., None]).squeeze(-1)  # [m, k]
    of_query = (grad[:, None] @ keys).squeeze(1) - query * along.sum(1, keepdim=True)
    of_keys = grad[..., None] * query[:, None] - keys * along[..., None]
    return of_query * query_factor, of_keys * key_factor


def _products(query: Tensor, key: Tensor, indices: Tensor) -> Tensor:
    values = torch.empty_like(indices, dtype=query.dtype)
    for part in _parts(len(query), indices.shape[1] * query.shape[1]):
        values[part] = (query[part, None] * key[indices[part]]).sum(-1)
    return values.masked_fill_(indices < 0, -torch.inf)


# <query[i], key[indices[i, j]]>, -inf where the index is -1.
found_products = define(
    "found_products(Tensor query, Tensor key, Tensor indices) -> Tensor",
    _products,
    lambda query, key, indices: torch.empty_like(indices, dtype=query.dtype),
)
