"""Rows against the rows of a weight, one for each class, which may be many.

A large weight is taken in blocks: rows of unit length are made of one block at a time, again in the
backward pass, which writes the block's gradient in place. Beyond the weight and its gradient there
are a few blocks.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._ops import define, new_like
from cl_kernels._precision import accumulator
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import Call, number_tensor
from cl_kernels.checks import as_factor
from cl_kernels.losses.common import total
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.epilogues import EPILOGUES
from cl_kernels.losses.operands import Rows, halves
from cl_kernels.losses.visits import visit
from cl_kernels.pairs import PairFilter, Pairs
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

    @property
    def of_cosine(self) -> bool:
        """Whether it is no margin of the angle."""
        return self.m1 == 1 and self.m2 == 0

    def line(self, x: Tensor, y: Tensor, normalize: bool) -> Tensor | None:
        """What stands for the similarity of matching embeddings: factors of it, offsets, and the
        derivative, [3, B], or one of each, [3, 1]; None: itself."""
        if not self.of_cosine:
            return torch.stack(self.of(*halves(Rows.of((x, y), normalize).rows)))
        line = (1.0,), (-self.m3,), (1.0,)
        return torch.tensor(line, dtype=accumulator(x), device=x.device) if self.m3 else None

    def of(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of matching rows, [B] each, which are of unit length where there is a margin of the
        angle: a factor of the cosine, what is added to it, and the derivative."""
        if self.of_cosine:
            one = x.new_ones(x.shape[0])
            return one, torch.full_like(one, -self.m3), one
        # From the cosine, small angles would be lost in rounding.
        apart, facing = (torch.linalg.vector_norm(v, dim=1) for v in (x - y, x + y))
        shifted = (2 * self.m1) * torch.atan2(apart, facing) + self.m2
        # Rows that are one, or opposite, but for rounding have no direction to each other.
        none = apart.minimum(facing) < 8 * torch.finfo(x.dtype).eps
        sine = (apart * facing).masked_fill_(none, torch.inf)
        beyond = shifted > math.pi
        slope = (shifted.sin().mul_(2 * self.m1) / sine).masked_fill_(beyond, 1)
        offset = shifted.cos().masked_fill_(beyond, -self._drop(x))
        return beyond.to(x.dtype), offset - self.m3 if self.m3 else offset, slope

    def _drop(self, like: Tensor) -> float | Tensor:
        """What the cosine is less where ``m1 * theta + m2`` is beyond pi, so that the value falls
        on: for m1 = 1 and m2 up to 2.33 it is m2 * sin(m2)."""
        m1, m2 = self.m1, self.m2
        if torch.compiler.is_compiling():  # they may be symbols
            gap = math.pi - (math.pi - as_factor(m2, like)) / as_factor(m1, like)
            return torch.maximum(gap * gap.sin(), 1 - gap.cos())
        gap = math.pi - (math.pi - m2) / m1
        return max(gap * math.sin(gap), 1 - math.cos(gap))


def contrast_classes(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    scale: float | Tensor,
    margin: Margin,
    *,
    normalize: bool,
    logit_bound: float | None,
    reduction: str,
    backend: str | None,
) -> Tensor:
    """The loss of each row's class's logit less the margin, against all others.

    Args:
        x: Rows, [B, D].
        weight: One row for each class, [C, D].
        target: The class of each row, int64 [B].
        scale: Of the logits.
        margin: Of the row's own class.
        normalize: Divide rows by their length first.
    """
    if weight.numel() <= _SMALLEST_BLOCK or _recording.active():
        others = PairFilter(target, torch.arange(weight.shape[0], device=x.device), "different")
        own = weight.index_select(0, target)
        recipe = Recipe("row_logsumexp", "softplus", normalize, in_batch=False)
        settings = {"logit_bound": logit_bound, "reduction": reduction, "backend": backend}
        line = margin.line(x.detach(), own.detach(), normalize)
        return contrast(recipe, x, own, scale, (others,), weight, margin=line, **settings)
    negatives = visit("row_logsumexp", x, weight, logit_bound=logit_bound, backend=backend)
    given = *margin, normalize, *negatives.call.concrete()[1:]
    scale = number_tensor(scale, x)
    return total(_of_many(x, weight, target, scale, given, negatives.backend), reduction)


@in_graph
def _of_many(x, weight, target, scale, given, backend) -> Tensor:
    inputs = x.contiguous(), weight.contiguous(), target, scale
    trained = any(t.requires_grad for t in (x, weight, scale))
    if not (torch.is_grad_enabled() and trained):
        return _contrast_classes(backend, *inputs, *given)[0]
    return differentiable(_Losses, *inputs, given, backend)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, target, scale, given, backend):
        losses, kept = _contrast_classes(backend, x, weight, target, scale, *given)
        ctx.save_for_backward(kept, x, weight, target, scale)
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
    """Some of the classes, from one up to another."""

    first: int
    last: int

    def rows(self, weight: Tensor, normalize: bool) -> Rows:
        return Rows.of((weight[self.first : self.last],), normalize)

    def call(self, target: Tensor, compute_dtype: torch.dtype, logit_bound: float | None) -> Call:
        """Of all rows with these classes, but for each row's own."""
        classes = torch.arange(self.first, self.last, device=target.device)
        return Call(Pairs().without(target, classes), compute_dtype, logit_bound)

    def add(self, grad_rows: Tensor, grad_positives: Tensor, target: Tensor) -> None:
        """The gradients of the rows' own classes, as far as these are in the block."""
        inside = (self.first <= target) & (target < self.last)
        target = (target - self.first).clamp(0, len(grad_rows) - 1)
        grad_rows.index_add_(0, target, grad_positives.masked_fill(~inside[:, None], 0))


def _blocks(weight: Tensor) -> list[_Block]:
    count, width = weight.shape
    size = max(-(-count // _MOST_BLOCKS), _SMALLEST_BLOCK // width, 1)
    return [_Block(first, min(first + size, count)) for first in range(0, count, size)]


def _own_rows(weight: Tensor, target: Tensor, normalize: bool) -> Tensor:
    """Of each row's class, [B, D]."""
    return Rows.of((weight.index_select(0, target),), normalize).rows


def _forward(
    backend: str, x, weight, target, scale, m1, m2, m3, normalize, *options
) -> tuple[Tensor, Tensor]:
    """The losses and what is kept: the negatives' log-sum-exps, the positives' similarities and
    their derivatives, [3, B]."""
    query = Rows.of((x,), normalize).rows
    found = []
    for block in _blocks(weight):
        keys = block.rows(weight, normalize)
        call = block.call(target, *options)
        found.extend(forward(_LOGSUMEXP, backend, query, keys.rows, scale, call))
    negatives = reduce(_LOGSUMEXP.fold.union, found)
    own = _own_rows(weight, target, normalize)
    factor, offset, slope = Margin(m1, m2, m3).of(query, own)
    positive = torch.addcmul(offset, factor, (query * own).sum(1))
    losses = _EPILOGUE.value(negatives, scale * positive)
    return losses, torch.stack((negatives, positive, slope))


def _backward(
    backend: str, grad, statistics, x, weight, target, scale, m1, m2, m3, normalize,
    *arguments,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    *options, (needs_x, needs_weight, needs_scale) = arguments
    query, own = Rows.of((x,), normalize), _own_rows(weight, target, normalize)
    negatives, positive, slope = statistics.unbind()
    by_negatives, by_positive = (
        pull * grad for pull in _EPILOGUE.pulls(negatives, scale * positive)
    )
    by_cosine = (scale * by_positive * slope)[:, None]
    grad_rows, grad_scale = by_cosine * own, (by_positive * positive).sum()
    wanted = needs_x or (needs_scale and not needs_weight), needs_weight, False, False
    grad_weight = weight.new_empty(weight.shape if needs_weight else 0)
    for block in _blocks(weight):
        keys = block.rows(weight, normalize)
        found = backward(
            _LOGSUMEXP, backend, [by_negatives], [negatives], query.rows, keys.rows, scale,
            block.call(target, *options), wanted,
        )  # fmt: skip
        grad_scale += found.scale
        if wanted[0]:
            grad_rows += found.query
        if needs_weight:
            block.add(found.key, by_cosine * query.rows, target)
            grad_weight[block.first : block.last] = keys.gradient(found.key)
        del keys, found  # before the next block's are made
    grad_x = query.gradient(grad_rows).to(x.dtype) if needs_x else x.new_empty(0)
    return grad_x, grad_weight, grad_scale


def _forward_fake(backend, x, *_):
    return new_like(x, x.shape[0]), new_like(x, 3, x.shape[0])


def _backward_fake(backend, grad, statistics, x, weight, *arguments):
    needs_x, needs_weight, _ = arguments[-1]
    return (
        x.new_empty(x.shape if needs_x else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
        new_like(x),
    )


# One for all backends: a compiled one has nothing of its own here, and being asked takes time.
_contrast_classes = define(
    f"contrast_classes(str backend, {_INPUTS}) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
_contrast_classes_backward = define(
    "contrast_classes_backward(str backend, Tensor grad, Tensor statistics,"
    f" {_INPUTS}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
