"""Rows against the rows of a weight, one for each class, which may be many.

The weight is taken in blocks: rows of unit length are made of one block at a time, again in the
backward pass, which writes the block's gradient in place. Beyond the weight and its gradient there
are a few blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._ops import define_overloads, new_like, overload
from cl_kernels._precision import accumulator
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
        return overload("contrast_classes", backend)(*inputs, *given)
    return differentiable(_Against, *inputs, given, backend)


class _Against(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, weight, target, scale, given, backend):
        negatives, positives = overload("contrast_classes", backend)(
            query, weight, target, scale, *given
        )
        ctx.save_for_backward(negatives, query, weight, target, scale)
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
    """Some of the classes, from one up to another."""

    first: int
    last: int

    def rows(self, weight: Tensor, normalize: bool) -> Rows:
        return Rows.of((weight[self.first : self.last],), normalize)

    def call(self, target: Tensor, compute_dtype: torch.dtype, logit_bound: float | None) -> Call:
        """Of all rows with these classes, but for each row's own."""
        classes = torch.arange(self.first, self.last, device=target.device)
        return Call(Pairs().without(target, classes), compute_dtype, logit_bound)

    def add_positives(self, grad_rows: Tensor, grad_positives: Tensor, target: Tensor) -> None:
        inside = (self.first <= target) & (target < self.last)
        place = (target - self.first).clamp(0, len(grad_rows) - 1)
        grad_rows.index_add_(0, place, grad_positives.masked_fill(~inside[:, None], 0))


def _blocks(weight: Tensor) -> Iterator[_Block]:
    count, width = weight.shape
    size = max(-(-count // _MOST_BLOCKS), _SMALLEST_BLOCK // width, 1)
    for first in range(0, count, size):
        yield _Block(first, min(first + size, count))


def _statistics(
    backend: str, query, weight, target, scale, normalize, *options
) -> tuple[Tensor, Tensor]:
    negatives = query.new_full(query.shape[:1], -torch.inf)
    for block in _blocks(weight):
        rows, call = block.rows(weight, normalize).rows, block.call(target, *options)
        (some,) = forward(_LOGSUMEXP, backend, query, rows, scale, call)
        negatives = _LOGSUMEXP.fold.union(negatives, some)
    return negatives, Rows.of((weight.index_select(0, target),), normalize).rows


def _gradients(
    backend: str, grad, grad_positives, negatives, query, weight, target, scale, normalize,
    *arguments,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *options, (needs_query, needs_weight, needs_scale) = arguments
    by_query = needs_query or (needs_scale and not needs_weight)
    grad_query = torch.zeros_like(query) if by_query else query.new_empty(0)
    grad_weight = torch.empty_like(weight) if needs_weight else weight.new_empty(0)
    grad_scale = torch.zeros_like(scale)
    for block in _blocks(weight):
        rows = block.rows(weight, normalize)
        found = backward(
            _LOGSUMEXP, backend, [grad], [negatives], query, rows.rows, scale,
            block.call(target, *options), (by_query, needs_weight, False, False),
        )  # fmt: skip
        grad_scale += found.scale
        if by_query:
            grad_query += found.query
        if needs_weight:
            block.add_positives(found.key, grad_positives, target)
            grad_weight[block.first : block.last] = rows.gradient(found.key)
    return grad_query, grad_weight, grad_scale


def _statistics_fake(query, *_):
    return new_like(query, query.shape[0]), new_like(query, *query.shape)


def _gradients_fake(grad, grad_positives, negatives, query, weight, *arguments):
    needs_query, needs_weight, needs_scale = arguments[-1]
    by_query = needs_query or (needs_scale and not needs_weight)
    return (
        torch.empty_like(query) if by_query else query.new_empty(0),
        torch.empty_like(weight) if needs_weight else weight.new_empty(0),
        query.new_empty((), dtype=accumulator(query)),
    )


define_overloads(
    "contrast_classes",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    _statistics_fake,
    _statistics,
    composed=True,
)
define_overloads(
    "contrast_classes_backward",
    f"(Tensor grad, Tensor grad_positives, Tensor negatives, {_INPUTS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor)",
    _gradients_fake,
    _gradients,
    composed=True,
)
