"""Losses of two views that need no negatives: VICReg, Barlow Twins, BYOL and SimSiam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag, check_number
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import (
    LARGEST,
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
    in_full,
    total,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.rows import float_rows, norms_of


def vicreg(
    first: Tensor,
    second: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Views shall be near each other, every column spread out, and columns uncorrelated.

    Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
    Learning" (2022), equations 1 to 6: the mean squared difference of the views; the mean over
    columns of ``max(0, 1 - sqrt(var + eps))``; the sum of squared covariances of different
    columns, divided by D. As in the authors' code, and not in equation 6, the variance term is the
    mean of both views', not their sum; the covariance term is the sum.

    Args:
        first: Embeddings of one view, shape [B, D], B at least 2. float32, float16, bfloat16 or
            float64.
        second: Embeddings of the other view, shape [B, D], same dtype and device.
        invariance: Weight of the first term.
        variance: Weight of the second.
        covariance: Weight of the third.
        eps: Added to variances, above 0.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = vicreg(expander(view_0), expander(view_1))
    """
    if over_several(gather, group):
        return over_ranks(vicreg, locals())
    first, second = _two_views(first=first, second=second)
    for name, weight in (
        ("invariance", invariance),
        ("variance", variance),
        ("covariance", covariance),
    ):
        _check_weight(name, weight)
    _check_eps(eps)
    batch, (rows, dim) = the_batch(), first.shape
    alike = batch.sum((first - second).square().sum()) / (batch.count(rows) * dim)
    spread, correlated = zip(*(_spread(x, eps) for x in (first, second)), strict=True)
    return invariance * alike + variance / 2 * sum(spread) + covariance * sum(correlated)


class VICRegLoss(LossModule):
    """``vicreg`` as a module: ``loss(first, second)``.

    Settings are the function's other arguments.
    """

    function = vicreg
    inputs = "first", "second"


def barlow_twins(
    first: Tensor,
    second: Tensor,
    *,
    redundancy: float = 0.005,
    eps: float = 1e-5,
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """The cross-correlation of the views' columns shall be the identity.

    Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (2021),
    equation 1: ``sum_i (1 - c_ii)^2 + redundancy * sum_(i != j) c_ij^2``, of columns with mean 0
    and variance 1 over the batch.

    Args:
        first: Embeddings of one view, shape [B, D], B at least 2. float32, float16, bfloat16 or
            float64.
        second: Embeddings of the other view, shape [B, D], same dtype and device.
        redundancy: Weight of the second sum.
        eps: Added to variances, above 0, as the batch normalisation of the authors' code does.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = barlow_twins(projector(view_0), projector(view_1))
    """
    if over_several(gather, group):
        return over_ranks(barlow_twins, locals())
    first, second = _two_views(first=first, second=second)
    _check_weight("redundancy", redundancy)
    _check_eps(eps)
    batch = the_batch()
    first, second = (batch.standardized(x, eps) for x in (first, second))
    correlation = batch.sum(in_full(first.T, second)) / batch.count(first.shape[0])
    diagonal = correlation.diagonal()
    others = correlation - diagonal.diag_embed()
    return (1 - diagonal).square().sum() + redundancy * others.square().sum()


class BarlowTwinsLoss(LossModule):
    """``barlow_twins`` as a module: ``loss(first, second)``.

    Settings are the function's other arguments.
    """

    function = barlow_twins
    inputs = "first", "second"


def negative_cosine(
    prediction: Tensor,
    target: Tensor,
    *,
    stop_gradient: bool = True,
    squared_distance: bool = False,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Minus the cosine of a prediction and its target.

    Chen and He, "Exploring Simple Siamese Representation Learning" (2021), equation 1; with
    ``squared_distance`` equation 2 of Grill et al., "Bootstrap Your Own Latent" (2020). Both papers
    take it twice, with the views swapped.

    Args:
        prediction: Of the online network's predictor, shape [B, D]. float32, float16, bfloat16 or
            float64.
        target: Of the other view, shape [B, D], same dtype and device.
        stop_gradient: Whether no gradient flows to the target: without that, and without another
            network that makes the targets, all rows become one.
        squared_distance: The squared distance of the unit vectors instead, ``2 - 2 cos``.
        reduction: ``"mean"`` or ``"sum"`` over the rows, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        The mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = negative_cosine(p_0, z_1) / 2 + negative_cosine(p_1, z_0) / 2
    """
    if over_several(gather, group):
        return over_ranks(negative_cosine, locals())
    prediction, target = as_inputs(prediction=prediction, target=target)
    check_same_rows("target", target, "prediction", prediction)
    check_flag("stop_gradient", stop_gradient)
    check_flag("squared_distance", squared_distance)
    check_reduction(reduction)
    target = target.detach() if stop_gradient and target.requires_grad else target
    # As one operation with the sum: a node of autograd takes a tenth of the time of 16 rows.
    inside = "none" if squared_distance or torch.compiler.is_compiling() else reduction
    losses = _negative_cosines(prediction, target, inside)
    if inside == "none":
        losses = total(2 + 2 * losses if squared_distance else losses, reduction)
    return losses


class NegativeCosineLoss(LossModule):
    """``negative_cosine`` as a module: ``loss(prediction, target)``.

    Settings are the function's other arguments.
    """

    function = negative_cosine
    inputs = "prediction", "target"


@in_graph
def _negative_cosines(first: Tensor, second: Tensor, reduction: Reduction) -> Tensor:
    needs = first.requires_grad, second.requires_grad
    return differentiable(_NegativeCosines, first, second, needs, reduction)


class _NegativeCosines(torch.autograd.Function):
    """Of matching rows, or their total. ``F.cosine_similarity`` takes a dozen operations of
    autograd, and copies of both as unit vectors."""

    @staticmethod
    def forward(
        ctx: Any, first: Tensor, second: Tensor, needs: tuple[bool, bool], reduction: Reduction
    ) -> Tensor:
        a, b = (x if x.dtype == torch.float64 else x.float() for x in (first, second))
        of_a, of_b = norms_of(a), norms_of(b)
        rows = max(a.shape[0], 1) if reduction == "mean" else 1
        inverse = (of_a * of_b).reciprocal_().mul_(-1 / rows)
        values = torch.linalg.vecdot(a, b).mul_(inverse)
        made = []
        if needs[0]:
            made.append(_pull(a, b, of_a, inverse, values))
        if needs[1]:
            made.append(_pull(b, a, of_b, inverse, values))
        ctx.save_for_backward(*made)
        ctx.dtype, ctx.needs = first.dtype, needs
        return values if reduction == "none" else total(values, "sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        made, grad = iter(ctx.saved_tensors), grads[0][..., None]
        of_first, of_second = (
            (grad * next(made)).to(ctx.dtype) if need else None for need in ctx.needs
        )
        return of_first, of_second, None, None


def _pull(one: Tensor, other: Tensor, norm: Tensor, inverse: Tensor, values: Tensor) -> Tensor:
    """The derivative of each value by its row of ``one``."""
    return (inverse[:, None] * other).addcmul_(one, (values / norm.square())[:, None], value=-1)


def _two_views(**views: Tensor) -> tuple[Tensor, ...]:
    """In the accumulation type, of at least two rows: one row has no variance."""
    first, second = as_inputs(**views)
    check_same_rows("second", second, "first", first)
    rows = the_batch().count(first.shape[0])
    if rows < 2:
        raise ValueError(f"first: expected at least two rows, got {rows}")
    return tuple(float_rows(x, normalize=False) for x in (first, second))


def _check_weight(name: str, weight: float) -> None:
    check_number(name, weight)
    if not 0 <= weight <= LARGEST:
        raise ValueError(f"{name}: expected a finite number, at least 0, got {weight}")


def _check_eps(eps: float) -> None:
    check_number("eps", eps)
    if not 0 < eps <= LARGEST:
        raise ValueError(f"eps: expected a finite number above 0, got {eps}")


def _spread(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """How much columns lack of a standard deviation of 1, and how much they vary together."""
    batch = the_batch()
    count = batch.count(x.shape[0])
    x = x - batch.sum(x.sum(0)) / count
    covariance = batch.sum(in_full(x.T, x)) / (count - 1)
    lack = (1 - (covariance.diagonal() + eps).sqrt()).relu().mean()
    # The upper half is all of it twice; all minus the diagonal would be rounding.
    return lack, 2 * covariance.triu(1).square().sum() / x.shape[1]
