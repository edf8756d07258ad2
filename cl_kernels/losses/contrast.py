"""Each query's positive against its negatives: what most losses come down to.

``loss = softplus(negatives - positive)``, where ``negatives`` is a log-sum-exp over negatives only
and the positive is one dot product. ``-log softmax`` over all keys is the same number, but in
float32 ``lse_all - positive`` loses every digit of a small loss.

The autograd functions here are the composition of ``stack_rows``, a statistic and ``contrast``,
differentiated by hand: at small batches torch's bookkeeping costs more than the arithmetic, and
the positives' gradient is added into the statistic's own buffer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._ops import overload
from cl_kernels.functional import call_options, refuse_double_backward, scale_tensor
from cl_kernels.losses.rows import stack_rows, unstack_gradient
from cl_kernels.pairs import PairFilter


def contrast(negatives: Tensor, positive: Tensor) -> Tensor:
    """``softplus(negatives - positive)``; no negative at all (-inf) gives loss 0."""
    return F.softplus(negatives - positive, threshold=40)


def self_contrast(
    view_0: Tensor,
    view_1: Tensor,
    scale: float | Tensor,
    where: tuple[PairFilter, ...],
    normalize: bool,
    logit_bound: float | None,
    backend: str | None,
) -> Tensor:
    """Loss of every row of both views, [2B]: its other view against the rows that are kept."""
    rows = view_0.shape[0] + view_1.shape[0]
    options = call_options(view_0, (rows, rows), where, None, logit_bound)
    name = choose(backend, view_0.device.type, view_0.dtype)
    if _recording.active():
        shape = rows, rows, view_0.shape[1]
        return _recording.record("self_logsumexp", name, view_0, shape, options.compute_dtype)
    return _SelfContrast.apply(
        view_0, view_1, scale_tensor(scale, view_0), normalize, name, options
    )


def pair_contrast(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    where: tuple[PairFilter, ...],
    normalize: bool,
    logit_bound: float | None,
    backend: str | None,
    *,
    symmetric: bool,
) -> Tensor:
    """Loss of every query, [B]: key i against the keys that are kept.

    ``symmetric``: the mean of that and of the same with queries and keys exchanged.
    """
    shape = query.shape[0], key.shape[0]
    options = call_options(query, shape, where, None, logit_bound)
    name = choose(backend, query.device.type, query.dtype)
    statistic = "row_col_logsumexp" if symmetric else "row_logsumexp"
    if _recording.active():
        _recording.record(statistic, name, query, (*shape, query.shape[1]), options.compute_dtype)
        return query.new_zeros(shape[0])
    return _PairContrast.apply(
        query, key, scale_tensor(scale, query), normalize, statistic, name, options
    )


class _SelfContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, view_0, view_1, scale, normalize, backend, options):
        rows, norm = stack_rows((view_0, view_1), normalize)
        lse = overload("self_logsumexp", backend)(rows, scale, *options)
        first, second = rows.chunk(2)
        similarity = (first * second).sum(1)  # [B]
        margin = lse.view(2, -1) - scale * similarity  # [2, B]
        ctx.save_for_backward(rows, norm, scale, lse, similarity, margin)
        ctx.backend, ctx.options, ctx.dtype = backend, options, view_0.dtype
        return F.softplus(margin, threshold=40).view(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        refuse_double_backward()
        rows, norm, scale, lse, similarity, margin = ctx.saved_tensors
        pull = margin.sigmoid() * grads[0].view(2, -1)
        compute = overload("self_logsumexp_backward", ctx.backend)
        grad_rows, grad_scale = compute(pull.view(-1), lse, rows, scale, *ctx.options)
        pull = pull.sum(0)  # d loss / d positive is its negative
        weight = (scale * pull)[:, None]
        (first, second), (grad_first, grad_second) = rows.chunk(2), grad_rows.chunk(2)
        grad_first.addcmul_(second, weight, value=-1)
        grad_second.addcmul_(first, weight, value=-1)
        grad_scale = grad_scale - (pull * similarity).sum() if ctx.needs_input_grad[2] else None
        grad_0, grad_1 = unstack_gradient(grad_rows, rows, norm, ctx.dtype).chunk(2)
        return grad_0, grad_1, grad_scale, None, None, None


class _PairContrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, scale, normalize, statistic, backend, options):
        rows, row_norm = stack_rows((query,), normalize)
        keys, key_norm = stack_rows((key,), normalize)
        lse = overload(statistic, backend)(rows, keys, scale, *options)
        lse = torch.stack(lse) if isinstance(lse, tuple) else lse[None]  # [directions, B]
        similarity = (rows * keys).sum(1)  # [B]
        margin = lse - scale * similarity  # [directions, B]
        ctx.save_for_backward(rows, row_norm, keys, key_norm, scale, lse, similarity, margin)
        ctx.statistic, ctx.backend, ctx.options = statistic, backend, options
        ctx.dtype = query.dtype
        loss = F.softplus(margin, threshold=40)
        return loss.mean(0) if len(loss) > 1 else loss[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        refuse_double_backward()
        rows, row_norm, keys, key_norm, scale, lse, similarity, margin = ctx.saved_tensors
        needs_query, needs_key, needs_scale = ctx.needs_input_grad[:3]
        pull = margin.sigmoid() * (grads[0] / len(margin))
        compute = overload(f"{ctx.statistic}_backward", ctx.backend)
        by_query = needs_query or not needs_key  # <query, grad> gives the scale's
        grad_rows, grad_keys, grad_scale = compute(
            *pull.unbind(), *lse.unbind(), rows, keys, scale, *ctx.options, by_query, needs_key
        )
        pull = pull.sum(0)  # d loss / d positive is its negative
        weight = (scale * pull)[:, None]
        grad_query = grad_key = None
        if needs_query:
            grad_rows.addcmul_(keys, weight, value=-1)
            grad_query = unstack_gradient(grad_rows, rows, row_norm, ctx.dtype)
        if needs_key:
            grad_keys.addcmul_(rows, weight, value=-1)
            grad_key = unstack_gradient(grad_keys, keys, key_norm, ctx.dtype)
        grad_scale = grad_scale - (pull * similarity).sum() if needs_scale else None
        return grad_query, grad_key, grad_scale, None, None, None, None
