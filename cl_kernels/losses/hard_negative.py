"""Contrastive learning with hard or debiased negatives."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels.checks import as_factor
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
    no_loss,
    total,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.module import LossModule
from cl_kernels.statistics.positives import pair_logits
from cl_kernels.statistics.rows import float_rows


def hard_negative(
    view_0: Tensor,
    view_1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    normalize: bool = True,
    reduction: Reduction = "mean",
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
    view_0, view_1 = as_inputs(view_0=view_0, view_1=view_1)
    check_same_rows("view_1", view_1, "view_0", view_0)
    _check_shape_of_weights(beta, tau_plus)
    check_reduction(reduction)
    scale = inverse(temperature, view_0)
    B = view_0.shape[0]
    if B < 2:
        return no_loss(2 * B, reduction, view_0, view_1, scale)

    def against(factor: float) -> Tensor:
        """Log-sum-exp over negatives at ``factor * scale``, less the positive's logit, [2B]."""
        bound = logit_bound(normalize, scale=factor, temperature=temperature)
        options = {"logit_bound": bound, "reduction": "none", "backend": backend}
        recipe = Recipe("self_logsumexp", "difference", normalize)
        return contrast(recipe, view_0, view_1, factor * scale, **options)

    count = as_factor(2 * B - 2, view_0).log()
    negatives = against(1 + beta)
    if beta > 0:
        negatives = negatives - against(beta) + count
    if tau_plus > 0:
        first, second = (float_rows(view, normalize=normalize) for view in (view_0, view_1))
        floor = (count - abs(scale) - pair_logits(first, second, scale)).repeat(2)
        negatives = _debiased(negatives, math.log(tau_plus) + count, tau_plus, floor)
    return total(F.softplus(negatives, threshold=40), reduction)


class HardNegativeLoss(LossModule):
    """``hard_negative`` as a module: ``loss(view_0, view_1)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = hard_negative
    inputs = "view_0", "view_1"


def _check_shape_of_weights(beta: float, tau_plus: float) -> None:
    check_number("beta", beta)
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta: expected a finite number of at least 0, got {beta}")
    check_number("tau_plus", tau_plus)
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus: expected at least 0 and below 1, got {tau_plus}")


def _debiased(negatives: Tensor, false: Tensor, tau_plus: float, floor: Tensor) -> Tensor:
    """``log max((exp(negatives) - exp(false)) / (1 - tau_plus), exp(floor))``: without overflow,
    since only the ratio of the two is an exponential."""
    gap = false - negatives
    none_left = gap >= 0
    rest = gap.masked_fill(none_left, -1).expm1().neg().log() - math.log1p(-tau_plus)
    return torch.maximum((negatives + rest).masked_fill(none_left, -torch.inf), floor)
