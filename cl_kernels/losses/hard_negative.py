"""Contrastive learning with hard or debiased negatives."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.both_sides import of_both
from cl_kernels.losses.common import (
    LARGEST,
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
    no_loss,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step, times
from cl_kernels.losses.operands import halves
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group


def hard_negative(
    view_0: Tensor,
    view_1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """NT-Xent with negatives weighted by how similar they are, and corrected for false ones.

    Robinson et al., "Contrastive Learning with Hard Negative Samples" (2021), equation 4; with
    ``beta=0`` Chuang et al., "Debiased Contrastive Learning" (2020), equation 8. With ``beta=0``
    and ``tau_plus=0`` it is ``nt_xent``.

    A row has N = 2B - 2 negatives, all rows of other images. Their sum of ``exp(logit)`` becomes
    N times its mean under weights ``exp(beta * logit)``; from it ``tau_plus * N * exp(positive)``
    is taken; the rest is divided by ``1 - tau_plus`` and is at least ``N * exp(-1 / temperature)``,
    the least that unit vectors can sum to. All of it is computed in logarithms.

    Args:
        view_0: Embeddings of one view, shape [B, D]. float32, float16, bfloat16 or float64.
        view_1: Embeddings of the other view, shape [B, D], same dtype and device.
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        beta: How much similar negatives weigh more, a number of at least 0.
        tau_plus: The share of false negatives: how likely two images are of one class, a number
            of at least 0 and below 1.
        normalize: Divide rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over the 2B rows, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [2B] (view_0's rows first) for ``reduction="none"``; float32
        (float64 for float64 inputs). A single pair has no negatives: loss 0 and gradient 0; the
        mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = hard_negative(projections_0, projections_1, 0.5, beta=1.0, tau_plus=0.1)
    """
    if over_several(gather, group):
        return over_ranks(hard_negative, locals())
    view_0, view_1 = as_inputs(view_0=view_0, view_1=view_1)
    check_same_rows("view_1", view_1, "view_0", view_0)
    _check_shape_of_weights(beta, tau_plus)
    check_reduction(reduction)
    scale = inverse(temperature, view_0)
    B = view_0.shape[0]
    batch = the_batch()
    every = 2 * batch.count(B)
    if every < 4:
        return no_loss(2 * B, reduction, view_0, view_1, scale)

    rows = torch.cat((view_0, view_1))
    image = of_both(batch.positions(B, view_0.device))
    factors = (1 + beta, beta) if beta > 0 else (1.0,)
    others = PairFilter(image, image, "different")
    visits = []
    for factor in factors:
        bound = logit_bound(normalize, scale=factor, temperature=temperature)
        settings = {"logit_bound": bound, "backend": backend}
        visits.append(visit("self_logsumexp", rows, None, others, **settings))
    settings = tuple(visits), factors, every - 2, tau_plus
    return _losses((rows,), (scale,), settings, normalize, reduction)


@one_step
def _losses(
    x: Embeddings,
    scale: Tensor,
    visits: tuple[Visit, ...],
    factors: tuple[float, ...],
    negatives: int,
    tau_plus: float,
) -> tuple[Tensor, Pull]:
    streamed = [Streamed(v, x, scale=f * scale) for v, f in zip(visits, factors, strict=True)]
    others = _swapped(x.rows)
    similarity = (x.rows * others).sum(1)
    positive = scale * similarity
    count = torch.full_like(scale, negatives).log()
    # Less the positive's logit: log of the weighted mean of exp(logit) times the count.
    weighted = streamed[0].value - positive
    if len(streamed) > 1:
        weighted.sub_(streamed[1].value).add_(count)
    debiased = _Debiased(weighted, count - scale.abs() - positive, tau_plus, count)

    def pull(grad: Tensor | None) -> tuple[Tensor]:
        by_weighted, by_floor = debiased.pull(times(grad, debiased.value.sigmoid()))
        of_scale = factors[0] * streamed[0].pull(by_weighted)
        if len(streamed) > 1:
            of_scale = of_scale + factors[1] * streamed[1].pull(-by_weighted)
        by_positive = -by_weighted
        if by_floor is not None:
            by_positive.sub_(by_floor)
            of_scale = of_scale - scale.sign() * by_floor.sum()
        # A row's positive is the other view, whose positive it is.
        x.add_weighted(scale * (by_positive + _swapped(by_positive)), others)
        return (of_scale + torch.dot(by_positive, similarity),)

    return F.softplus(debiased.value, threshold=40), pull


class HardNegativeLoss(LossModule):
    """``hard_negative`` as a module: ``loss(view_0, view_1)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = hard_negative
    inputs = "view_0", "view_1"


def _check_shape_of_weights(beta: float, tau_plus: float) -> None:
    check_number("beta", beta)
    if not 0 <= beta <= LARGEST:
        raise ValueError(f"beta: expected a finite number of at least 0, got {beta}")
    check_number("tau_plus", tau_plus)
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus: expected at least 0 and below 1, got {tau_plus}")


def _swapped(x: Tensor) -> Tensor:
    """Of each view's rows those of the other."""
    first, second = halves(x)
    return torch.cat((second, first))


class _Debiased:
    """``log max((exp(negatives) - tau_plus * count) / (1 - tau_plus), exp(floor))``, of logarithms
    less the positive's logit: without overflow, since only a ratio is an exponential."""

    def __init__(self, negatives: Tensor, floor: Tensor, tau_plus: float, count: Tensor):
        self.value, self.left = negatives, None
        if tau_plus == 0:
            return
        gap = count + math.log(tau_plus) - negatives
        self.left = gap.clamp_max_(0).expm1_().neg_()  # the share of the negatives that is left
        rest = self.left.log().add_(negatives).sub_(math.log1p(-tau_plus))
        self.below = rest <= floor  # never of a NaN
        self.value = torch.maximum(rest, floor)

    def pull(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """By the negatives, and by the floor."""
        if self.left is None:
            return grad, None
        return (grad / self.left).masked_fill_(self.below, 0), torch.where(self.below, grad, 0)
