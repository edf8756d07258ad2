"""The total of SupCon over the rows of a batch, whose gradient is known up to one factor.

It is made in the forward pass: at small batches the nodes of autograd would take longer than all
arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._dispatch import choose
from cl_kernels._numbers import check_flag
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import Call, number_tensor, request_of
from cl_kernels.losses.labels import SameLabel
from cl_kernels.losses.operands import Rows
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.operations import backward, forward
from cl_kernels.statistics.table import STATISTICS

_LOGSUMEXP = STATISTICS["self_logsumexp"]


def supcon_total(
    x: Tensor,
    labels: Tensor,
    scale: float | Tensor,
    *,
    normalize: bool,
    reduction: str,
    compute_dtype: torch.dtype,
    logit_bound: float | None,
    backend: str | None,
) -> Tensor:
    """Mean or sum over the rows that have a positive: positives are the other rows of a label,
    and all other rows are in the denominator."""
    check_flag("normalize", normalize)
    call = Call(Pairs(), compute_dtype, logit_bound).concrete()
    name = choose(backend, request_of(_LOGSUMEXP.name, x, call))
    options = normalize, reduction, name, *call[1:]
    return _total(x.contiguous(), labels, number_tensor(scale, x), options)


@in_graph
def _total(x: Tensor, labels: Tensor, scale: Tensor, options: tuple) -> Tensor:
    needs = x.requires_grad, scale.requires_grad
    if torch.is_grad_enabled() and any(needs):
        return differentiable(_Total, x, labels, scale, options)
    return _evaluated(x, labels, scale, options, False)[0]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, labels, scale, options):
        total, *gradients = _evaluated(x, labels, scale, options, True)
        ctx.save_for_backward(*gradients)
        ctx.dtype = x.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        of_x, of_scale = (
            grads[0] * g if need else None
            for g, need in zip(ctx.saved_tensors, ctx.needs_input_grad[::2], strict=False)
        )
        return None if of_x is None else of_x.to(ctx.dtype), None, of_scale, None


def _evaluated(
    x: Tensor, labels: Tensor, scale: Tensor, options: tuple, needed: bool
) -> tuple[Tensor, ...]:
    """The total and, if they are needed, its gradients with respect to x and the scale."""
    normalize, reduction, backend, *how = options
    batch, index = Rows.of((x,), normalize), torch.arange(x.shape[0], device=x.device)
    rows, call = batch.rows, Call(Pairs().without(index, index), *how)
    (lse,) = forward(_LOGSUMEXP, backend, rows, None, scale, call)
    same = SameLabel.of(labels, None, rows)
    sums, counts = same.sums(rows), same.counts()
    counted = counts > 0
    # Of each row's loss in the total; 0 of rows without a positive, which may be alone.
    share = counted.to(rows.dtype)
    share = share / share.sum().clamp_min_(1) if reduction == "mean" else share
    each = share / counts.clamp_min(1)  # of each positive's similarity
    similarity = (rows * sums).sum(1)
    by_scale = torch.dot(each, similarity)
    total = torch.dot(share, lse.masked_fill(~counted, 0)) - scale * by_scale
    if not needed:
        return (total,)
    of_lse = backward(
        _LOGSUMEXP, backend, [share], [lse], rows, None, scale, call, (True, False, False, False)
    )
    pull = (scale * each)[:, None]
    grad = of_lse.query.sub_(pull * sums).sub_(same.back(pull * rows))
    return total, batch.gradient(grad), of_lse.scale - by_scale
