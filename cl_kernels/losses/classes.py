"""Rows against the rows of a weight, one for each class, which may be many.

The weight is taken in blocks: rows of unit length are made of one block at a time, again in the
backward pass, which writes the block's gradient in place. Beyond the weight and its gradient there
are a few blocks. All is one function of autograd, which takes less time than its parts at the
batches that a network is trained with.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._ops import define, new_like
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import Call, note_call, number_tensor, request_of
from cl_kernels.losses.epilogues import EPILOGUES
from cl_kernels.losses.operands import Rows
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.operations import backward, forward
from cl_kernels.statistics.table import STATISTICS

_SMALLEST_BLOCK = 1 << 20  # numbers
_MOST_BLOCKS = 32
_EPILOGUE, _LOGSUMEXP = EPILOGUES["softplus"], STATISTICS["row_logsumexp"]

_INPUTS = (
    "Tensor x, Tensor weight, Tensor target, Tensor scale, float m1, float m2, float m3,"
    " bool normalize, ScalarType compute_dtype, float? logit_bound"
)


class Margin(NamedTuple):
    """``cos(m1 * theta + m2) - m3`` in place of the cosine of a row and its class."""

    m1: float
    m2: float
    m3: float

    def of(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Of matching rows, [B], and its derivative by the cosine. Rows are of unit length where
        there is a margin of the angle."""
        cosine = (x * y).sum(1)
        if self.m1 == 1 and self.m2 == 0:
            return cosine - self.m3, torch.ones_like(cosine)
        # From the cosine, small angles would be lost in rounding.
        apart, facing = (torch.linalg.vector_norm(v, dim=1) for v in (x - y, x + y))
        angle = 2 * torch.atan2(apart, facing)
        shifted = self.m1 * angle + self.m2
        falls = shifted <= math.pi
        value = torch.where(falls, shifted.cos(), cosine - self._drop())
        # Rows that are one but for rounding have no direction to each other.
        sine = (apart * facing / 2).masked_fill(apart < 8 * torch.finfo(x.dtype).eps, torch.inf)
        slope = torch.where(falls, self.m1 * shifted.sin() / sine, 1)
        return value - self.m3, slope

    def _drop(self) -> float:
        """What the cosine is less where ``m1 * theta + m2`` is beyond pi, so that the value falls
        on: for m1 = 1 and m2 up to 2.33 it is m2 * sin(m2)."""
        gap = math.pi - (math.pi - self.m2) / self.m1
        return max(gap * math.sin(gap), 1 - math.cos(gap))


def contrast_classes(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    scale: float | Tensor,
    margin: Margin,
    *,
    normalize: bool,
    compute_dtype: torch.dtype,
    logit_bound: float | None,
    backend: str | None,
) -> Tensor:
    """Of each row, the loss of its class's logit less the margin against all others, [B].

    Args:
        x: Rows, [B, D].
        weight: One row for each class, [C, D].
        target: The class of each row, int64 [B].
        scale: Of the logits.
        margin: Of the row's own class.
        normalize: Divide rows by their length first.
    """
    call = Call(Pairs(), compute_dtype, logit_bound).concrete()
    request = request_of("row_logsumexp", x, call)
    name = choose(backend, request)
    if _recording.active():
        return note_call(request, name, backend, x, (x.shape[0], weight.shape[0]))[0]
    scale, given = number_tensor(scale, x), (*margin, normalize, *call[1:])
    return _contrast(x, weight, target, scale, given, name)


@in_graph
def _contrast(x, weight, target, scale, given, backend) -> Tensor:
    inputs = x.contiguous(), weight.contiguous(), target, scale
    trained = any(t.requires_grad for t in (x, weight, scale))
    if not (torch.is_grad_enabled() and trained):
        return _contrast_classes(backend, *inputs, *given)[0]
    return differentiable(_Losses, *inputs, given, backend)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, target, scale, given, backend):
        losses, *kept = _contrast_classes(backend, x, weight, target, scale, *given)
        ctx.save_for_backward(*kept, x, weight, target, scale)
        ctx.given, ctx.backend = given, backend
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        needs_x, needs_weight, _, needs_scale = ctx.needs_input_grad[:4]
        needs = needs_x, needs_weight, needs_scale
        given = grads[0].contiguous(), *ctx.saved_tensors, *ctx.given, needs
        gradients = _contrast_classes_backward(ctx.backend, *given)
        of_x, of_weight, of_scale = (
            g if need else None for g, need in zip(gradients, needs, strict=True)
        )
        return of_x, of_weight, None, of_scale, None, None


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

    def add(self, grad_rows: Tensor, grad_positives: Tensor, target: Tensor) -> None:
        """The gradients of the rows' own classes, as far as these are in the block."""
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


def _own_rows(weight: Tensor, rows: Tensor, target: Tensor, normalize: bool) -> Tensor:
    """Of each row's class, [B, D]: of ``rows``, if those of all classes are there."""
    if len(rows):
        return rows.index_select(0, target)
    return Rows.of((weight.index_select(0, target),), normalize).rows


def _forward(
    backend: str, x, weight, target, scale, m1, m2, m3, normalize, *options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses and what is kept: the negatives' log-sum-exps, the positives' similarities and
    their derivatives, [3, B]; of a single block, rows and norms, which are empty otherwise."""
    query = Rows.of((x,), normalize).rows
    rows, norm = query.new_empty(0), query.new_empty(0)
    found = []
    for block in _blocks(weight):
        keys = block.rows(weight, normalize)
        call = block.call(target, *options)
        found.extend(forward(_LOGSUMEXP, backend, query, keys.rows, scale, call))
        if block.is_all and keys.norm is not None:
            rows, norm = keys.rows, keys.norm
    negatives = reduce(_LOGSUMEXP.fold.union, found)
    own = _own_rows(weight, rows, target, normalize)
    positive, slope = Margin(m1, m2, m3).of(query, own)
    losses = _EPILOGUE.value(negatives, scale * positive)
    return losses, torch.stack((negatives, positive, slope)), rows, norm


def _backward(
    backend: str, grad, statistics, rows, norm, x, weight, target, scale, m1, m2, m3, normalize,
    *arguments,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *options, (needs_x, needs_weight, needs_scale) = arguments
    query, own = Rows.of((x,), normalize), _own_rows(weight, rows, target, normalize)
    negatives, positive, slope = statistics.unbind()
    by_negatives, by_positive = (
        pull * grad for pull in _EPILOGUE.pulls(negatives, scale * positive)
    )
    by_cosine = (scale * by_positive * slope)[:, None]
    grad_rows, grad_scale = by_cosine * own, (by_positive * positive).sum()
    wanted = needs_x or (needs_scale and not needs_weight), needs_weight, False, False
    blocks = _blocks(weight)
    in_parts = needs_weight and len(blocks) > 1
    grad_weight = weight.new_empty(weight.shape if in_parts else 0)
    for block in blocks:
        keys = Rows(rows, norm) if len(rows) else block.rows(weight, normalize)
        found = backward(
            _LOGSUMEXP, backend, [by_negatives], [negatives], query.rows, keys.rows, scale,
            block.call(target, *options), wanted,
        )  # fmt: skip
        grad_scale += found.scale
        if wanted[0]:
            grad_rows += found.query
        if needs_weight:
            block.add(found.key, by_cosine * query.rows, target)
            of_block = keys.gradient(found.key)
            if in_parts:
                grad_weight[block.first : block.last] = of_block
            else:
                grad_weight = of_block.to(weight.dtype)
            del of_block
        del keys, found  # before the next block's are made
    grad_x = query.gradient(grad_rows).to(x.dtype) if needs_x else x.new_empty(0)
    return grad_x, grad_weight, grad_scale


def _forward_fake(backend, x, weight, target, scale, m1, m2, m3, normalize, *_):
    count, width = weight.shape
    kept = normalize and len(_blocks(weight)) == 1
    return (
        new_like(x, x.shape[0]),
        new_like(x, 3, x.shape[0]),
        new_like(x, *((count, width) if kept else (0,))),
        new_like(x, *((count, 1) if kept else (0,))),
    )


def _backward_fake(backend, grad, statistics, rows, norm, x, weight, *arguments):
    needs_x, needs_weight, _ = arguments[-1]
    return (
        x.new_empty(x.shape if needs_x else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
        new_like(x),
    )


# One for all backends: a compiled one has nothing of its own here, and being asked takes time.
_contrast_classes = define(
    f"contrast_classes(str backend, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_contrast_classes_backward = define(
    "contrast_classes_backward(str backend, Tensor grad, Tensor statistics, Tensor rows,"
    f" Tensor norm, {_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
