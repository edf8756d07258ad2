"""Each query's positive against its negatives: what most losses come down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._numbers import check_flag
from cl_kernels._ops import define_overloads, new_like, overload
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import CALL, Call, as_call, note_call, number_tensor, request_of
from cl_kernels.losses import composed
from cl_kernels.losses.common import total
from cl_kernels.pairs import PairFilter
from cl_kernels.statistics.table import STATISTICS

_INPUTS = (
    "Tensor first, Tensor second, Tensor? negative_keys, Tensor? counted, Tensor? margin,"
    f" Tensor scale, {CALL}"
)
_RECIPE = "str statistic, str epilogue, bool normalize, bool in_batch"


def _rows(statistic: str, first: Tensor) -> int:
    """How many losses there are."""
    return first.shape[0] * (2 if STATISTICS[statistic].of_one else 1)


def _gradients_fake(first, second, negative_keys, call: Sequence[Any], statistic: str, wanted):
    views, rows = STATISTICS[statistic].of_one, _rows(statistic, first)
    of_first = (rows, first.shape[1]) if views else first.shape
    of_further = () if negative_keys is None else negative_keys.shape
    query_bias = Call.of(call).pairs.query_bias
    of_bias = () if query_bias is None else query_bias.shape
    shapes = of_first, second.shape, of_further, (), of_bias, (rows,)
    return [new_like(first, *shape) for shape in composed.Needs(*wanted).of(views, shapes)]


def _contrast_fake(first, second, negative_keys, counted, margin, scale, *arguments):
    *call, statistic, _, _, _, reduction, needs = arguments
    wanted = composed.NO_NEEDS if reduction == "none" else needs
    return (
        new_like(first, *((_rows(statistic, first),) if reduction == "none" else ())),
        new_like(first, STATISTICS[statistic].directions + 1, first.shape[0]),
        _gradients_fake(first, second, negative_keys, call, statistic, wanted),
    )


def _contrast_backward_fake(
    grad, statistics, first, second, negative_keys, counted, margin, scale, *arguments
):
    *call, statistic, _, _, _, needs = arguments
    return _gradients_fake(first, second, negative_keys, call, statistic, needs)


define_overloads(
    "contrast",
    f"({_INPUTS}, {_RECIPE}, str reduction, bool[] needs) -> (Tensor, Tensor, Tensor[])",
    _contrast_fake,
    composed.contrast,
    composed=True,
)
define_overloads(
    "contrast_backward",
    f"(Tensor grad, Tensor statistics, {_INPUTS}, {_RECIPE}, bool[] needs) -> Tensor[]",
    _contrast_backward_fake,
    composed.contrast_backward,
    composed=True,
)


class Recipe(NamedTuple):
    """Which loss of this shape: see ``composed.Composition``. In batch, a positive is no negative
    of its query."""

    statistic: str
    epilogue: str
    normalize: bool
    in_batch: bool = True


def contrast(
    recipe: Recipe,
    first: Tensor,
    second: Tensor,
    scale: float | Tensor,
    where: tuple[PairFilter, ...] = (),
    negative_keys: Tensor | None = None,
    counted: Tensor | None = None,
    *,
    logit_bound: float | None,
    reduction: str,
    backend: str | None,
    vectors: Mapping[str, Tensor | None] | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """The reduced losses, or those of all rows for ``reduction="none"``.

    Args:
        recipe: Which loss.
        first, second: Two views [B, D], or queries and keys: the positives are their rows.
        scale: Inverse temperature.
        where: Filters on the pairs of queries and keys.
        negative_keys: More negatives of every query, [K, D]. Not in batch, they are all there are,
            and the filters' keys. With ``counted`` each query's own, [M * K, D].
        counted: Which of each query's own negatives are some, bool [M, K].
        logit_bound: What no logit exceeds, if the host knows it.
        reduction: "mean", "sum" or "none".
        backend: Which backend serves the call.
        vectors: Other options of ``Pairs``; biases are added to the positives' logits too, and
            one number, 0-d, may stand for those of all queries.
        margin: What stands for each positive's similarity: a factor of it, an offset, and the
            derivative, [3, B], or of all, [3, 1]. No gradient flows to it.
    """
    check_flag("normalize", recipe.normalize)
    M, N = first.shape[0], second.shape[0]
    if STATISTICS[recipe.statistic].of_one:
        M = N = M + N
    if not recipe.in_batch and negative_keys is not None:
        N = negative_keys.shape[0]
    call = as_call(first, (M, N), where, None, logit_bound, vectors)
    request = request_of(recipe.statistic, first, call)
    name = choose(backend, request)
    if _recording.active():
        own = counted is not None
        shapes = [(M, N)] if recipe.in_batch or not own else []
        if negative_keys is not None and (own or recipe.in_batch):
            shapes.append((M, counted.shape[1] if own else negative_keys.shape[0]))
        return _explained(request, name, backend, first, shapes, reduction)
    further = negative_keys, counted, margin
    return _contrast(recipe, reduction, name, call, scale, first, second, *further)


def _explained(request, name, backend, first, shapes, reduction) -> Tensor:
    """Notes a visit of each set of negatives; those of further ones are of rows."""
    rows = []
    for shape in shapes:
        rows.append(note_call(request, name, backend, first, shape)[0])
        fold = STATISTICS[request.operation].fold.name
        request = request._replace(operation=f"row_{fold}", options=())
    return total(rows[0], reduction)


@in_graph
def _contrast(
    recipe: Recipe,
    reduction: str,
    backend: str,
    call: Call,
    scale: float | Tensor,
    first: Tensor,
    second: Tensor,
    negative_keys: Tensor | None,
    counted: Tensor | None,
    margin: Tensor | None,
) -> Tensor:
    call, factor = call.concrete(), number_tensor(scale, first)
    inputs = (
        *(x if x is None else x.contiguous() for x in (first, second, negative_keys)), factor,
        call.pairs.query_bias, call.pairs.key_bias,
    )  # fmt: skip
    needs = tuple(x is not None and x.requires_grad for x in inputs)
    if not (torch.is_grad_enabled() and any(needs)):
        compute = overload("contrast", backend)
        given = *inputs[:3], counted, margin, factor, *call.arguments
        return compute(*given, *recipe, reduction, composed.NO_NEEDS)[0]
    if reduction == "none":
        return differentiable(_RowLosses, *inputs, counted, margin, recipe, backend, call)
    return differentiable(_Total, *inputs, counted, margin, recipe, backend, call, reduction, needs)


def _of_inputs(ctx: Any, recipe: Recipe, gradients) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, as autograd takes those of all inputs."""
    views = STATISTICS[recipe.statistic].of_one
    *of_rows, scale, query_bias, key_bias = composed.Needs(*ctx.needs).spread(views, gradients)
    of_rows = [g if g is None or g.dtype == ctx.dtype else g.to(ctx.dtype) for g in of_rows]
    return *of_rows, scale, query_bias, key_bias


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, first, second, negative_keys, scale, query_bias, key_bias, counted,
        margin, recipe, backend, call,
    ):  # fmt: skip
        call = call.with_biases(query_bias, key_bias)
        inputs = first, second, negative_keys, counted, margin, scale
        compute = overload("contrast", backend)
        arguments = *call.arguments, *recipe, "none", composed.NO_NEEDS
        losses, statistics, _ = compute(*inputs, *arguments)
        call.save(ctx, statistics, *inputs)
        ctx.recipe, ctx.backend, ctx.dtype = recipe, backend, first.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        saved, call = Call.saved(ctx)
        ctx.needs = ctx.needs_input_grad[:6]
        compute = overload("contrast_backward", ctx.backend)
        grad = grads[0].contiguous()
        gradients = compute(grad, *saved, *call.arguments, *ctx.recipe, ctx.needs)
        return *_of_inputs(ctx, ctx.recipe, gradients), *(None,) * 5


class _Total(torch.autograd.Function):
    """Makes the gradients in the forward pass: of a total they are known up to one factor, and
    keeping them takes no more memory than what they are made from."""

    @staticmethod
    def forward(
        ctx: Any, first, second, negative_keys, scale, query_bias, key_bias, counted,
        margin, recipe, backend, call, reduction, needs,
    ):  # fmt: skip
        call = call.with_biases(query_bias, key_bias)
        inputs = first, second, negative_keys, counted, margin, scale
        compute = overload("contrast", backend)
        loss, _, gradients = compute(*inputs, *call.arguments, *recipe, reduction, needs)
        ctx.save_for_backward(*gradients)
        ctx.recipe, ctx.needs, ctx.dtype = recipe, needs, first.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        (grad,) = grads
        return *_of_inputs(ctx, ctx.recipe, [grad * g for g in ctx.saved_tensors]), *(None,) * 7
