"""Gradients of the scores that a search found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels.functional import refuse_double_backward

from .scores import accumulator, factors

_GATHERED = 1 << 22  # numbers gathered at a time in the backward pass


class FoundScores(torch.autograd.Function):
    """Scores of the pairs that were found, with the gradient of ``pair_logits``."""

    @staticmethod
    def forward(ctx: Any, query, key, values, indices, normalize):
        ctx.save_for_backward(query, key, indices)
        ctx.normalize = normalize
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        refuse_double_backward()
        query, key, indices = ctx.saved_tensors
        needs_query, needs_key = ctx.needs_input_grad[:2]
        dtype = accumulator(query)
        grad_query = torch.zeros_like(query, dtype=dtype) if needs_query else None
        grad_key = torch.zeros_like(key, dtype=dtype) if needs_key else None
        grad = grads[0].masked_fill(indices < 0, 0)
        indices = indices.clamp_min(0)
        rows = max(1, _GATHERED // max(1, indices.shape[1] * query.shape[1]))
        for first in range(0, len(query) if len(key) else 0, rows):
            part = slice(first, first + rows)
            keys = key[indices[part].to(key.device)]  # [m, k, D]; they may be on the host
            of_query, of_keys = _pair_gradients(
                query[part].to(dtype), keys.to(query.device, dtype), grad[part], ctx.normalize
            )
            if grad_query is not None:
                grad_query[part] = of_query
            if grad_key is not None:
                grad_key.index_add_(0, indices[part].flatten(), of_keys.flatten(0, 1))
        return (
            None if grad_query is None else grad_query.to(query.dtype),
            None if grad_key is None else grad_key.to(key.dtype),
            None,
            None,
            None,
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
