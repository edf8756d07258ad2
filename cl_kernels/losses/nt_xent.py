"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels.calls import default_compute_dtype
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
    total,
    union,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.epilogues import softplus
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.pairs import PairFilter, Where, as_filters
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.functions import row_logsumexp, self_logsumexp
from cl_kernels.statistics.rows import float_rows


def nt_xent(
    view_0: Tensor,
    view_1: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    negative_keys: Tensor | None = None,
    where: Where = (),
    negative_where: Where = (),
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalized temperature-scaled cross-entropy over the views of a batch.

    Every row of both views is a query: its positive is the other view of the same image, its
    negatives are all other rows (itself excluded) and ``negative_keys``. Chen et al., "A Simple
    Framework for Contrastive Learning of Visual Representations" (2020), equation 1.

    Args:
        view_0: Embeddings of one view, shape [B, D]; or of V views of each image, [B, V, D],
            without ``view_1``: the loss of a row is then the mean over its V - 1 positives, none
            of which is a negative of another. float32, float16, bfloat16 or float64.
        view_1: Embeddings of the other view, shape [B, D], same dtype and device.
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        normalize: Divide rows by their length first (cosine similarity).
        negative_keys: Further negatives of every query, shape [K, D], e.g. a queue.
        where: At most two ``PairFilter`` over the rows of all views (view_0 first; image by image
            where they are [B, V, D]) that say which of them may be negatives of each other;
            positives always count.
        negative_where: At most two ``PairFilter`` over these rows and ``negative_keys``.
        reduction: ``"mean"`` or ``"sum"`` over the rows, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [2B] (view_0's rows first) or [B * V] for ``reduction="none"``;
        float32 (float64 for float64 inputs). A row without negatives has loss 0 and gradient 0;
        the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    if over_several(gather, group):
        return over_ranks(nt_xent, locals())
    many = view_1 is None and isinstance(view_0, Tensor) and view_0.dim() == 3
    inputs: dict[str, Any] = {"view_0": view_0.flatten(0, 1) if many else view_0}
    if not many:
        inputs["view_1"] = view_1
    if negative_keys is not None:
        inputs["negative_keys"] = negative_keys
    checked = dict(zip(inputs, as_inputs(**inputs), strict=True))
    rows, further = checked["view_0"], checked.get("negative_keys")
    check_reduction(reduction)
    scale = inverse(temperature, rows)
    filters, further_filters = as_filters(where, most=2), _further_filters(negative_where, further)
    settings = {
        "logit_bound": logit_bound(normalize, temperature=temperature),
        "backend": backend,
    }
    if not many:
        check_same_rows("view_1", checked["view_1"], "view_0", rows)
        if not further_filters:
            recipe, of_rows = Recipe("self_logsumexp", "softplus", normalize), checked["view_1"]
            queue = (filters, further, None)
            return contrast(recipe, rows, of_rows, scale, *queue, reduction=reduction, **settings)
        rows = torch.cat((rows, checked["view_1"]))
    settings["compute_dtype"] = default_compute_dtype(rows)
    rows = float_rows(rows, normalize=normalize)
    grouped = rows.view(view_0.shape) if many else rows.view(2, *view_0.shape)
    negatives = _negatives(grouped, 1 if many else 0, scale, filters, settings)
    if further is not None:
        keys = float_rows(further, normalize=normalize)
        with the_batch().everybodys():
            of_keys = row_logsumexp(rows, keys, scale, where=further_filters, **settings)
        negatives = union((negatives, of_keys))
    return total(_of_views(grouped, 1 if many else 0, scale, negatives), reduction)


class NTXentLoss(LossModule):
    """``nt_xent`` as a module: ``loss(view_0, view_1=None, negative_keys=None, *, where=(),
    negative_where=())``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = nt_xent
    inputs = "view_0", "view_1", "negative_keys"
    options = "where", "negative_where"


def _further_filters(where: Where, negative_keys: Tensor | None) -> tuple[PairFilter, ...]:
    filters = as_filters(where, most=2, name="negative_where")
    if filters and negative_keys is None:
        raise ValueError("negative_where: expected no filter without negative_keys, got one")
    return filters


def _negatives(
    grouped: Tensor, dim: int, scale, filters: tuple[PairFilter, ...], settings: dict[str, Any]
) -> Tensor:
    """Log-sum-exp over each row's negatives in the batch: all rows of other images.

    ``grouped``: [B, V, D], or [V, B, D]; ``dim``: which is that of the views.
    """
    views, images = grouped.shape[dim], grouped.shape[1 - dim]
    image = the_batch().positions(images, grouped.device)
    image = image.repeat_interleave(views) if dim else image.repeat(views)
    where = PairFilter(image, image, "different"), *filters
    return self_logsumexp(grouped.flatten(0, 1), scale, where=where, **settings)


def _of_views(grouped: Tensor, dim: int, scale, negatives: Tensor) -> Tensor:
    """Each row's mean over its positives, the other views."""
    views = grouped.shape[dim]
    losses = 0 * grouped.sum(-1).flatten()  # a single view has no positive, and a gradient of 0
    for shift in range(1, views):
        positive = scale * (grouped * grouped.roll(shift, dim)).sum(-1).flatten()
        losses = losses + softplus(negatives, positive)
    return losses / max(views - 1, 1)
