"""The streamed statistics and their gradients: one autograd entry for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._precision import widest
from cl_kernels._spread import weighs_keys
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import Call, number_tensor
from cl_kernels.statistics.operations import backward, forward, weighted_key
from cl_kernels.statistics.table import STATISTICS, Statistic


@in_graph
def streamed(
    name: str, backend: str, call: Call, scale: float | Tensor, query: Tensor, key: Tensor | None
) -> tuple[Tensor, ...]:
    """Values of a statistic of ``scale`` times the products of query and key; without a key, of
    the query with itself."""
    statistic, call = STATISTICS[name], call.concrete()
    factor, biases = number_tensor(scale, query), (call.pairs.query_bias, call.pairs.key_bias)
    query, key = query.contiguous(), key if key is None else key.contiguous()
    inputs = query, key, factor, *biases
    if not (torch.is_grad_enabled() and any(map(_is_trained, inputs))):
        return forward(statistic, backend, query, key, factor, call)
    in_one_visit = statistic.has_weighted_key and weighs_keys(backend)
    if key is not None and in_one_visit and not any(map(_is_trained, (key, *biases))):
        return (differentiable(_FrozenKey, query, key, factor, statistic, backend, call),)
    values = differentiable(_Streamed, *inputs, statistic, backend, call)
    return values if isinstance(values, tuple) else (values,)


def _is_trained(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query, key, scale, query_bias, key_bias,
        statistic: Statistic, backend: str, call: Call,
    ):  # fmt: skip
        call = call.with_biases(query_bias, key_bias)
        values = forward(statistic, backend, query, key, scale, call)
        ctx.mark_non_differentiable(*(x for x in values if not x.is_floating_point()))
        call.save(ctx, query, key, scale, *statistic.differentiable(values))
        ctx.statistic, ctx.backend = statistic, backend
        return values[0] if len(values) == 1 else values

    @staticmethod
    def backward(ctx: Any, *grads):
        grads = ctx.statistic.differentiable(grads)
        check_backward(*grads)
        (query, key, scale, *values), call = Call.saved(ctx)
        needs = ctx.needs_input_grad[:5]
        needs_query, needs_key, needs_scale, *needs_biases = needs
        by_query = needs_query or (needs_scale and not needs_key)  # <query, grad> gives the scale's
        gradients = backward(
            ctx.statistic, ctx.backend, [g.contiguous() for g in grads], values,
            query, key, scale, call, (by_query, needs_key, *needs_biases),
        )  # fmt: skip
        dtypes = (query.dtype,) * 2 + (scale.dtype,) * 3
        each = zip(gradients, needs, dtypes, strict=True)
        return *(g.to(dtype) if need else None for g, need, dtype in each), *(None,) * 3


class _FrozenKey(torch.autograd.Function):
    """Only the query (or scale) is trained: its gradient is made in the forward visit."""

    @staticmethod
    def forward(ctx: Any, query, key, scale, statistic: Statistic, backend: str, call: Call):
        values, keys = weighted_key(statistic, backend, query, key, scale, call)
        ctx.save_for_backward(query, scale, values, keys)
        ctx.compute_dtype = call.compute_dtype
        return values

    @staticmethod
    def backward(ctx: Any, *grads):
        check_backward(*grads)
        query, scale, values, keys = ctx.saved_tensors
        of_query = of_scale = None
        if ctx.needs_input_grad[0]:
            of_query = frozen_query_gradient(grads[0], values, keys, scale).to(query.dtype)
        if ctx.needs_input_grad[2]:
            given = values, keys, query, scale, ctx.compute_dtype
            of_scale = frozen_scale_gradient(grads[0], *given)
        return of_query, None, of_scale, *(None,) * 3


# From what ``weighted_key`` found: values [M], and the keys that each query has, weighted [M, D].


def frozen_query_gradient(grad: Tensor, values: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    return keys * (scale * _of_some(grad, values))


def frozen_scale_gradient(
    grad: Tensor,
    values: Tensor,
    keys: Tensor,
    query: Tensor,
    scale: Tensor,
    compute_dtype: torch.dtype,
) -> Tensor:
    rounded = query.to(compute_dtype).to(keys.dtype)
    products = (rounded * keys).mul_(_of_some(grad, values))
    products.masked_fill_((values == -torch.inf)[:, None], 0)
    return products.sum(dtype=widest(products.device)).to(scale.dtype)


def _of_some(grad: Tensor, values: Tensor) -> Tensor:
    """Of queries that have a key, [M, 1]."""
    return grad.masked_fill(values == -torch.inf, 0)[:, None]
