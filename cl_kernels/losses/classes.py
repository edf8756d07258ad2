"""Rows against the rows of a weight, one for each class, which may be many.

The weight is taken in blocks: rows of unit length are made of one block at a time, again in the
backward pass, which writes the block's gradient in place. Beyond the weight and its gradient there
are a few blocks.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._ops import define_overloads, new_like, overload
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import Call, note_call, number_tensor, request_of
from cl_kernels.losses.operands import Rows
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.operations import backward, forward
from cl_kernels.statistics.table import STATISTICS

_SMALLEST_BLOCK = 1 << 20  # numbers
_MOST_BLOCKS = 16
_LOGSUMEXP = STATISTICS["row_logsumexp"]

_INPUTS = (
    "Tensor query, Tensor weight, Tensor target, Tensor scale, bool normalize,"
    " ScalarType compute_dtype, float? logit_bound"
)


class AgainstClasses(NamedTuple):
    """Of each row.

    Args:
        negatives: Log-sum-exp of its logits over all classes but its own, [B].
        positives: The row of its own class, [B, D].
    """

    negatives: Tensor
    positives: Tensor


def against_classes(
    rows: Tensor,
    weight: Tensor,
    target: Tensor,
    scale: float | Tensor,
    *,
    normalize: bool,
    compute_dtype: torch.dtype,
    logit_bound: float | None,
    backend: str | None,
) -> AgainstClasses:
    """Differentiable by rows, weight and scale.

    Args:
        rows: In float32 (or float64), of unit length if ``normalize``, [B, D].
        weight: One row for each class, as it is kept, [C, D].
        target: The class of each row, int64 [B].
        scale: Of the logits.
        normalize: Divide the weight's rows by their length first.
    """
    call = Call(Pairs(), compute_dtype, logit_bound).concrete()
    request = request_of("row_logsumexp", rows, call)
    name = choose(backend, request)
    if _recording.active():
        shape = rows.shape[0], weight.shape[0]
        negatives, _ = note_call(request, name, backend, rows, shape)
        return AgainstClasses(negatives, torch.zeros_like(rows))
    scale = number_tensor(scale, rows)
    return AgainstClasses(*_against(rows, weight, target, scale, normalize, *call[1:], name))


@in_graph
def _against(rows, weight, target, scale, normalize, compute_dtype, logit_bound, backend):
    inputs = rows.contiguous(), weight.contiguous(), target, scale
    given = normalize, compute_dtype, logit_bound
    trained = any(x.requires_grad for x in (rows, weight, scale))
    if not (torch.is_grad_enabled() and trained):
        return overload("contrast_classes", backend)(*inputs, *given)[:2]
    return differentiable(_Against, *inputs, given, backend)


class _Against(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, weight, target, scale, given, backend):
        compute = overload("contrast_classes", backend)
        negatives, positives, *kept = compute(query, weight, target, scale, *given)
        ctx.save_for_backward(negatives, *kept, query, weight, target, scale)
        ctx.given, ctx.backend = given, backend
        return negatives, positives

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        needs_query, needs_weight, _, needs_scale = ctx.needs_input_grad[:4]
        needs = needs_query, needs_weight, needs_scale
        compute = overload("contrast_classes_backward", ctx.backend)
        of_rows = (x.contiguous() for x in grads)
        gradients = compute(*of_rows, *ctx.saved_tensors, *ctx.given, needs)
        query, weight, scale = (
            x if need else None for x, need in zip(gradients, needs, strict=True)
        )
        return query, weight, None, scale, None, None


class _Block(NamedTuple):
    """Some of the classes, from one up to another; or all."""

    first: int
    last: int
    is_all: bool

    def rows(self, weight: Tensor, normalize: bool) -> Rows:
        return Rows.of((weight[self.first : self.last],), normalize)

    def call(self, target: Tensor, compute_dtype: torch.dtype, logit_bound: float | None) -> Call:
        """Of all rows with these classes, but for each row's own."""
        classes = torch.arange(self.first, self.last, device=target.device)
        return Call(Pairs().without(target, classes), compute_dtype, logit_bound)

    def add_positives(self, grad_rows: Tensor, grad_positives: Tensor, target: Tensor) -> None:
        if not self.is_all:
            inside = (self.first <= target) & (target < self.last)
            target = (target - self.first).clamp(0, len(grad_rows) - 1)
            grad_positives = grad_positives.masked_fill(~inside[:, None], 0)
        grad_rows.index_add_(0, target, grad_positives)


def _blocks(weight: Tensor) -> list[_Block]:
    count, width = weight.shape
    size = max(-(-count // _MOST_BLOCKS), _SMALLEST_BLOCK // width, 1)
    starts = range(0, max(count, 1), size)
    return [_Block(first, min(first + size, count), len(starts) == 1) for first in starts]


def _statistics(
    backend: str, query, weight, target, scale, normalize, *options
) -> tuple[Tensor, ...]:
    """Negatives and positives; and the rows of a single block with their norms, which are kept."""
    blocks, found = _blocks(weight), []
    for block in blocks:
        rows, norm = block.rows(weight, normalize)
        found.extend(forward(_LOGSUMEXP, backend, query, rows, scale, block.call(target, *options)))
    negatives = reduce(_LOGSUMEXP.fold.union, found)
    if len(blocks) == 1 and norm is not None:
        return negatives, rows.index_select(0, target), rows, norm
    positives = Rows.of((weight.index_select(0, target),), normalize).rows
    return negatives, positives, query.new_empty(0), query.new_empty(0)


def _gradients(
    backend: str, grad, grad_positives, negatives, rows, norm, query, weight, target, scale,
    normalize, *arguments,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *options, (needs_query, needs_weight, needs_scale) = arguments
    wanted = needs_query or (needs_scale and not needs_weight), needs_weight, False, False
    of_query, of_scale = [], []
    grad_weight = torch.empty_like(weight) if needs_weight else weight.new_empty(0)
    for block in _blocks(weight):
        of_block = Rows(rows, norm) if len(rows) else block.rows(weight, normalize)
        found = backward(
            _LOGSUMEXP, backend, [grad], [negatives], query, of_block.rows, scale,
            block.call(target, *options), wanted,
        )  # fmt: skip
        of_query.append(found.query)
        of_scale.append(found.scale)
        if needs_weight:
            block.add_positives(found.key, grad_positives, target)
            grad_weight[block.first : block.last] = of_block.gradient(found.key)
    return reduce(torch.add, of_query), grad_weight, reduce(torch.add, of_scale)


def _statistics_fake(query, weight, target, scale, normalize, *_):
    rows, width = query.shape
    kept = normalize and len(_blocks(weight)) == 1
    return (
        new_like(query, rows),
        new_like(query, rows, width),
        new_like(query, *(weight.shape if kept else (0,))),
        new_like(query, *((weight.shape[0], 1) if kept else (0,))),
    )


def _gradients_fake(grad, grad_positives, negatives, rows, norm, query, weight, *arguments):
    needs_query, needs_weight, needs_scale = arguments[-1]
    by_query = needs_query or (needs_scale and not needs_weight)
    return (
        new_like(query, *(query.shape if by_query else (0,))),
        weight.new_empty(weight.shape if needs_weight else 0),
        new_like(query),
    )


define_overloads(
    "contrast_classes",
    f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _statistics_fake,
    _statistics,
    composed=True,
)
define_overloads(
    "contrast_classes_backward",
    "(Tensor grad, Tensor grad_positives, Tensor negatives, Tensor rows, Tensor norm,"
    f" {_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _gradients_fake,
    _gradients,
    composed=True,
)
