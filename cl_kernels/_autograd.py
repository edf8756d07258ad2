"""The streamed statistics and their gradients: the one autograd entry of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._ops import overload
from cl_kernels._precision import widest
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import CallOptions, scale_tensor


@in_graph
def streamed(
    statistic: str,
    backend: str,
    options: CallOptions,
    scale: float | Tensor,
    *embeddings: Tensor,
) -> Any:
    """A statistic of ``scale`` times the products of query and key, or of one with itself."""
    scale, options = scale_tensor(scale, embeddings[0]), options.concrete()
    trained = [x.requires_grad for x in (*embeddings, scale)]
    if not (torch.is_grad_enabled() and any(trained)):
        rows = (x.contiguous() for x in embeddings)
        return overload(statistic, backend)(*rows, scale, *options)
    function = _FUNCTIONS[statistic]
    if function is _RowLogSumExp and not embeddings[1].requires_grad:
        function = _RowLogSumExpFrozenKey
    return differentiable(function, *embeddings, scale, backend, options)


class _RowLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, scale, backend, options):
        query, key = query.contiguous(), key.contiguous()
        lse = overload("row_logsumexp", backend)(query, key, scale, *options)
        options.save(ctx, query, key, scale, lse)
        ctx.backend = backend
        return lse

    @staticmethod
    def backward(ctx: Any, *grads):
        check_backward(*grads)
        (query, key, scale, lse), options = CallOptions.saved(ctx)
        compute = overload("row_logsumexp_backward", ctx.backend)
        statistics = grads[0].contiguous(), lse
        return _pair_gradients(ctx, compute, statistics, query, key, scale, options)


class _RowLogSumExpFrozenKey(torch.autograd.Function):
    """Only the query (or scale) is trained: its gradient is made in the forward visit."""

    @staticmethod
    def forward(ctx: Any, query, key, scale, backend, options):
        query = query.contiguous()
        compute = overload("row_logsumexp_mean_key", backend)
        lse, mean_key = compute(query, key.contiguous(), scale, *options)
        ctx.save_for_backward(query, scale, lse, mean_key)
        ctx.compute_dtype = options.compute_dtype
        return lse

    @staticmethod
    def backward(ctx: Any, *grads):
        check_backward(*grads)
        query, scale, lse, mean_key = ctx.saved_tensors
        empty = (lse == -torch.inf)[:, None]
        grad = grads[0][:, None].masked_fill(empty, 0)
        grad_query = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_query = (mean_key * (scale * grad)).to(query.dtype)
        if ctx.needs_input_grad[2]:
            rounded = query.to(ctx.compute_dtype).to(mean_key.dtype)
            products = (rounded * mean_key).mul_(grad).masked_fill_(empty, 0)
            grad_scale = products.sum(dtype=widest(products.device)).to(scale.dtype)
        return grad_query, None, grad_scale, None, None


class _RowColLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, scale, backend, options):
        query, key = query.contiguous(), key.contiguous()
        row, col = overload("row_col_logsumexp", backend)(query, key, scale, *options)
        options.save(ctx, query, key, scale, row, col)
        ctx.backend = backend
        return row, col

    @staticmethod
    def backward(ctx: Any, *grads):
        check_backward(*grads)
        (query, key, scale, row, col), options = CallOptions.saved(ctx)
        compute = overload("row_col_logsumexp_backward", ctx.backend)
        statistics = *(g.contiguous() for g in grads), row, col
        return _pair_gradients(ctx, compute, statistics, query, key, scale, options)


class _SelfLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, scale, backend, options):
        x = x.contiguous()
        lse = overload("self_logsumexp", backend)(x, scale, *options)
        options.save(ctx, x, scale, lse)
        ctx.backend = backend
        return lse

    @staticmethod
    def backward(ctx: Any, *grads):
        check_backward(*grads)
        (x, scale, lse), options = CallOptions.saved(ctx)
        compute = overload("self_logsumexp_backward", ctx.backend)
        grad_x, grad_scale = compute(grads[0].contiguous(), lse, x, scale, *options)
        return grad_x.to(x.dtype), grad_scale, None, None


def _pair_gradients(ctx: Any, compute, statistics, query, key, scale, options):
    needs_query, needs_key, needs_scale = ctx.needs_input_grad[:3]
    by_query = needs_query or (needs_scale and not needs_key)  # <query, grad> gives the scale's
    grad_query, grad_key, grad_scale = compute(
        *statistics, query, key, scale, *options, by_query, needs_key
    )
    return (
        grad_query.to(query.dtype) if needs_query else None,
        grad_key.to(key.dtype) if needs_key else None,
        grad_scale if needs_scale else None,
        None,
        None,
    )


_FUNCTIONS = {
    "row_logsumexp": _RowLogSumExp,
    "row_col_logsumexp": _RowColLogSumExp,
    "self_logsumexp": _SelfLogSumExp,
}
