"""Embeddings of all ranks as one batch, and what leaves it again; differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels._transforms import check_backward
from cl_kernels.ranks.group import Ranks


def gather(
    ranks: Ranks, tensors: Sequence[Tensor], counts: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The rows of all ranks, so many of each. Embeddings come in the type that they are summed up
    in, so that their gradients are rounded once, after the ranks' parts are added."""
    return list(_Gather.apply(ranks, counts, *tensors))  # type: ignore[arg-type]


class _Gather(torch.autograd.Function):
    """One node for all tensors: every rank goes through its collectives in the same order."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, counts, *tensors: Tensor):
        ctx.ranks, ctx.counts = ranks, counts
        ctx.dtypes = [x.dtype for x in tensors]
        gathered = [ranks.rows(x, of) for x, of in zip(tensors, counts, strict=True)]
        ctx.mark_non_differentiable(*(x for x in gathered if not x.is_floating_point()))
        return tuple(x.to(accumulator(x)) if x.is_floating_point() else x for x in gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        needs, dtypes = ctx.needs_input_grad[2:], ctx.dtypes
        each = zip(grads, ctx.counts, needs, dtypes, strict=True)
        return (
            None,
            None,
            *(
                ctx.ranks.sum_of_own(grad, counts).to(dtype) if need else None
                for grad, counts, need, dtype in each
            ),
        )


class OfAll(torch.autograd.Function):
    """A number that all ranks have computed alike. Whatever each of them makes of it, its gradient
    is their mean on every one."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        return ctx.ranks.sum(grads[0].clone()) / ctx.ranks.size, None


class OwnRows(torch.autograd.Function):
    """Of values that all ranks have computed alike those of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks, counts: Sequence[int]) -> Tensor:
        ctx.ranks, ctx.counts = ranks, counts
        start = sum(counts[: ranks.rank])
        return values[start : start + counts[ranks.rank]].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        return ctx.ranks.rows(grads[0], ctx.counts) / ctx.ranks.size, None, None


class SumOfAll(torch.autograd.Function):
    """The sum of the ranks' numbers, on every rank; its gradient comes so many times to each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(value.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        return ctx.ranks.sum(grads[0].clone()), None
