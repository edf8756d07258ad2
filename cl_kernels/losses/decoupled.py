"""Decoupled contrastive learning: a positive is no part of its own denominator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_scalar
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_choice,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
    no_loss,
    total,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.epilogues import difference
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.functions import row_col_logsumexp, self_logsumexp
from cl_kernels.statistics.positives import pair_logits
from cl_kernels.statistics.rows import float_rows

Partition = Literal["joint", "per_view"]


def decoupled(
    view_0: Tensor,
    view_1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    partition: Partition = "joint",
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """NT-Xent without the positive in the denominator (DCL).

    Yeh et al., "Decoupled Contrastive Learning" (2021), equation 6, over both views: a row's loss
    is the log-sum-exp over its negatives minus its positive's logit. Its negatives are the rows of
    both views of all other images. It may be negative, and needs smaller batches than NT-Xent.

    Args:
        view_0: Embeddings of one view, shape [B, D]. float32, float16, bfloat16 or float64.
        view_1: Embeddings of the other view, shape [B, D], same dtype and device.
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        partition: ``"joint"``: one log-sum-exp over the negatives of both views. ``"per_view"``:
            one over those of each view, added.
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

        loss = decoupled(projections_0, projections_1, temperature=0.1)
    """
    if over_several(gather, group):
        return over_ranks(decoupled, locals())
    view_0, view_1 = as_inputs(view_0=view_0, view_1=view_1)
    check_same_rows("view_1", view_1, "view_0", view_0)
    check_choice("partition", partition, ("joint", "per_view"))
    check_reduction(reduction)
    scale = inverse(temperature, view_0)
    settings = {"logit_bound": logit_bound(normalize, temperature=temperature), "backend": backend}
    if the_batch().count(view_0.shape[0]) < 2:
        return no_loss(2 * view_0.shape[0], reduction, view_0, view_1, scale)
    if partition == "per_view":
        return total(_per_view(view_0, view_1, scale, normalize, **settings), reduction)
    recipe = Recipe("self_logsumexp", "difference", normalize)
    return contrast(recipe, view_0, view_1, scale, reduction=reduction, **settings)


def weighted_decoupled(
    view_0: Tensor,
    view_1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    sigma: float | Tensor = 0.5,
    partition: Partition = "joint",
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """``decoupled`` with more weight on the positives that are far apart (DCLW).

    Yeh et al., "Decoupled Contrastive Learning" (2021), equation 7: pair i's positive logit is
    multiplied by ``2 - B softmax(<view_0[i], view_1[i]> / sigma)``, the softmax over the B pairs.
    The weights are 1 on average, and no gradient flows to them.

    Args:
        view_0: Embeddings of one view, shape [B, D]. float32, float16, bfloat16 or float64.
        view_1: Embeddings of the other view, shape [B, D], same dtype and device.
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        sigma: The weights' temperature, a number other than zero. The smaller, the less even. No
            gradient flows to it.
        partition: ``"joint"`` or ``"per_view"``, as ``decoupled`` has it.
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

        loss = weighted_decoupled(projections_0, projections_1, temperature=0.1, sigma=0.5)
    """
    if over_several(gather, group):
        return over_ranks(weighted_decoupled, locals())
    settings = {"partition": partition, "normalize": normalize, "reduction": reduction}
    loss = decoupled(view_0, view_1, temperature, **settings, backend=backend)
    view_0, view_1 = as_inputs(view_0=view_0, view_1=view_1)
    sharpness = as_scalar("sigma", sigma, view_0, inverted=True)
    rows = (float_rows(view, normalize=normalize) for view in (view_0, view_1))
    similarity = pair_logits(*rows)  # [B]
    # One minus the weights: ``loss`` has the positives with weight 1.
    batch = the_batch()
    weights = batch.softmax((sharpness * similarity).detach())
    surplus = batch.count(view_0.shape[0]) * weights - 1
    positive = inverse(temperature, view_0) * similarity
    return loss + total((surplus * positive).repeat(2), reduction)


class DecoupledLoss(LossModule):
    """``decoupled`` as a module: ``loss(view_0, view_1)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = decoupled
    inputs = "view_0", "view_1"


class WeightedDecoupledLoss(LossModule):
    """``weighted_decoupled`` as a module: ``loss(view_0, view_1)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = weighted_decoupled
    inputs = "view_0", "view_1"


def _per_view(
    view_0: Tensor, view_1: Tensor, scale: float | Tensor, normalize: bool, **settings
) -> Tensor:
    """The losses of all rows, [2B]."""
    image = the_batch().positions(view_0.shape[0], view_0.device)
    options = {
        "where": PairFilter(image, image, "different"),
        "compute_dtype": default_compute_dtype(view_0),
        **settings,
    }
    rows_0, rows_1 = (float_rows(view, normalize=normalize) for view in (view_0, view_1))
    within = [self_logsumexp(rows, scale, **options) for rows in (rows_0, rows_1)]
    across = row_col_logsumexp(rows_0, rows_1, scale, **options)
    positive = pair_logits(rows_0, rows_1, scale)
    return torch.cat([difference(w + a, positive) for w, a in zip(within, across, strict=True)])
