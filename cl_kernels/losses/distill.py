"""Distillation of a teacher's similarities into a student's embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._ops import define, new_like
from cl_kernels._precision import accumulator
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import number_tensor
from cl_kernels.checks import as_scalar, check_embeddings
from cl_kernels.losses.batch import WHOLE, Batch, the_batch
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_choice,
    check_reduction,
    check_same_rows,
    inverse,
    total,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.operands import Rows
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.soft_targets import BothRows, compared_in_a_ring, compared_rows
from cl_kernels.ranks.group import Group


def distill(
    query: Tensor,
    key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    teacher_temperature: float | Tensor | None = None,
    divergence: Literal["kl", "cross_entropy"] = "kl",
    symmetric: bool = False,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """How far the student's softmax over keys is from the teacher's, for each query.

    With p the teacher's probabilities of all keys and s the student's: ``sum p log(p / s)``, or
    ``-sum p log s``, whose gradient is the same. Hinton et al., "Distilling the Knowledge in a
    Neural Network" (2015), section 2, where the loss is multiplied by the temperature squared to
    keep gradients of one size: here it is not. Neither matrix is held, but a block of queries at
    a time: O(N D).

    Args:
        query: The student's embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        key: The student's embeddings, shape [N, D], same dtype and device.
        teacher_query: The teacher's of the same items, shape [B, D2], on the same device.
        teacher_key: The teacher's of the same items, shape [N, D2]. No gradient flows to either.
        temperature: The student's: a number other than zero, or a 0-d tensor that may require
            grad.
        teacher_temperature: The teacher's, without gradient. Default: the student's.
        divergence: ``"kl"``, 0 for a student that agrees, or ``"cross_entropy"``, as open_clip's
            ``DistillClipLoss``.
        symmetric: Take the mean with the same of keys over queries; there must be as many.
        normalize: Divide all rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over the queries, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        The mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        with torch.no_grad():
            targets = teacher(images), teacher(texts)
        loss = distill(student(images), student(texts), *targets, symmetric=True)
    """
    if over_several(gather, group):
        return over_ranks(distill, locals())
    query, key = as_inputs(query=query, key=key)
    teacher_query, teacher_key = _teachers(teacher_query, teacher_key, query, key)
    check_choice("divergence", divergence, ("kl", "cross_entropy"))
    check_flag("symmetric", symmetric)
    check_flag("normalize", normalize)
    if symmetric and query.shape[0] != key.shape[0]:
        raise ValueError(
            f"key: expected as many rows as query, {query.shape[0]}, with symmetric, "
            f"got {key.shape[0]}"
        )
    check_reduction(reduction)
    scale = number_tensor(inverse(temperature, query), query)
    of_teacher = scale.detach()
    if teacher_temperature is not None:
        of_teacher = as_scalar("teacher_temperature", teacher_temperature, query, inverted=True)

    teacher = _teacher_rows(teacher_query, teacher_key, of_teacher, query, normalize)
    how = How(normalize, divergence, symmetric, scale.requires_grad)
    rows, compiled = (query.contiguous(), key.contiguous()), torch.compiler.is_compiling()
    return _distilled(*rows, scale, *teacher, how, reduction, compiled)


class DistillLoss(LossModule):
    """``distill`` as a module: ``loss(query, key, teacher_query, teacher_key)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = distill
    inputs = "query", "key", "teacher_query", "teacher_key"


def _teachers(teacher_query, teacher_key, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    for name, x, like_name, like in (
        ("teacher_query", teacher_query, "query", query),
        ("teacher_key", teacher_key, "key", key),
    ):
        check_embeddings(name, x)
        check_same_rows(name, x, like_name, like)
        if x.device != like.device:
            raise ValueError(
                f"{name}: expected the device of {like_name}, {like.device}, got {x.device}"
            )
    if teacher_key.shape[1] != teacher_query.shape[1]:
        raise ValueError(
            f"teacher_key: expected the width of teacher_query, {teacher_query.shape[1]}, "
            f"got {teacher_key.shape[1]}"
        )
    return teacher_query.detach(), teacher_key.detach()


def _teacher_rows(teacher_query, teacher_key, scale, like: Tensor, normalize: bool):
    """In the student's accumulation type; queries are divided by the temperature."""
    dtype, count = accumulator(like), teacher_query.shape[0]
    with torch.no_grad():
        both = teacher_query, teacher_key
        if not teacher_query.dtype == teacher_key.dtype == dtype:
            widest = reduce(torch.promote_types, (x.dtype for x in both), dtype)
            both = [x.to(widest) for x in both]
        query, key = Rows.of(both, normalize).rows.split_with_sizes((count, teacher_key.shape[0]))
        return (query * scale).to(dtype), key.to(dtype)


class How(NamedTuple):
    """
    Args:
        normalize, divergence, symmetric: As ``distill`` takes them.
        learned: Whether the gradient of the scale is wanted.
    """

    normalize: bool
    divergence: str
    symmetric: bool
    learned: bool


def _losses(
    inputs: Sequence[Any], how: How, grad: Tensor | None, batch: Batch, compiled: bool
) -> Sequence[Tensor]:
    """Of all queries; for ``grad`` of them the gradients of query and key, stacked, and of the
    scale. A difference of log-probabilities: autocast would round it away."""
    if compiled:
        return _operation(*inputs, *how, grad)
    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):  # entering takes a tenth of the time of 16 rows
        return _losses_in_full(inputs, how, grad, batch)
    with torch.autocast(kind, enabled=False):
        return _losses_in_full(inputs, how, grad, batch)


def _losses_in_full(
    inputs: Sequence[Any], how: How, grad: Tensor | None, batch: Batch
) -> Sequence[Tensor]:
    query, key, scale, *teacher = inputs
    student, count = Rows.of((query, key), how.normalize), query.shape[0]
    of_query, of_key = student.rows.split_with_sizes((count, key.shape[0]))
    rows = BothRows(of_query * scale, of_key, *teacher)
    if batch.ranks is None:
        losses, gradient = compared_rows(rows, how.divergence, how.symmetric, grad)
    else:
        given = how.divergence, how.symmetric, grad, batch.ranks
        losses, gradient = compared_in_a_ring(rows, *given)
    if gradient is None:
        return losses, losses.new_empty(0), losses.new_empty(())
    by_query = gradient[:count]
    of_scale = (by_query * of_query).sum() if how.learned else torch.zeros_like(scale)
    by_query.mul_(scale)
    return losses, student.gradient(gradient), of_scale


def _evaluated(*arguments):
    *inputs, normalize, divergence, symmetric, learned, grad = arguments
    how = How(normalize, divergence, symmetric, learned)
    return tuple(_losses(inputs, how, grad, WHOLE, False))


def _fake(query, key, scale, *arguments):
    made = arguments[-1] is not None
    stacked = (query.shape[0] + key.shape[0], query.shape[1]) if made else (0,)
    return new_like(query, query.shape[0]), new_like(query, *stacked), new_like(query)


# The same as one operation: its blocks would have torch.compile compile for every size.
_operation = define(
    "distilled(Tensor query, Tensor key, Tensor scale, Tensor teacher_query, Tensor teacher_key,"
    " bool normalize, str divergence, bool symmetric, bool learned, Tensor? grad)"
    " -> (Tensor, Tensor, Tensor)",
    _evaluated,
    _fake,
)


@in_graph
def _distilled(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    how: How,
    reduction: str,
    compiled: bool,
) -> Tensor:
    """The reduced losses, or those of all queries for ``reduction="none"``."""
    inputs = query, key, scale, teacher_query, teacher_key
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs[:3]):
        return differentiable(_Distilled, *inputs, how, reduction, compiled)
    return total(_losses(inputs, how, None, the_batch(), compiled)[0], reduction)


class _Distilled(torch.autograd.Function):
    """Makes the gradients of a total in the forward pass, which are known up to one factor; those
    of rows' losses visit the blocks again."""

    @staticmethod
    def forward(ctx: Any, *arguments):
        *inputs, how, reduction, compiled = arguments
        (query, key, scale, *_), batch = inputs, the_batch()
        ctx.dtype, ctx.sizes = query.dtype, (query.shape[0], key.shape[0])
        ctx.of_rows, ctx.settings = reduction == "none", (how, batch, compiled)
        share = None
        if not ctx.of_rows:
            count = max(batch.count(query.shape[0]), 1) if reduction == "mean" else 1
            share = scale.new_full(query.shape[:1], 1 / count)
        losses, *gradients = _losses(inputs, how, share, batch, compiled)
        ctx.save_for_backward(*(inputs if ctx.of_rows else gradients))
        return total(losses, reduction)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        (how, *settings), (grad,) = ctx.settings, grads
        if ctx.of_rows:
            _, stacked, of_scale = _losses(ctx.saved_tensors, how, grad, *settings)
        else:
            stacked, of_scale = ctx.saved_tensors
            stacked = grad * stacked
            of_scale = grad * of_scale if how.learned else None
        of_query, of_key = stacked.to(ctx.dtype).split_with_sizes(ctx.sizes)
        return of_query, of_key, of_scale, *(None,) * 5
