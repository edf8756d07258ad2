"""The symmetric image-text loss of CLIP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_scalar, check_indices
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import (
    Reduction,
    as_image_text,
    as_weights,
    check_reduction,
    check_smoothing,
    logit_bound,
    weighted_total,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.epilogues import softplus
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.pairs import PairFilter, Where, as_filters
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.functions import row_col_logsumexp
from cl_kernels.statistics.rows import float_rows


def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    target: Tensor | None = None,
    where: Where = (),
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy, both from one visit of the logits.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
    (2021), figure 3.

    Args:
        image_features: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        text_features: Row i belongs to image i, shape [B, D], same dtype and device; or C captions
            of each image, [B, C, D], none of which is a negative of its image; or any [N, D] with
            ``target``.
        logit_scale: Inverse temperature, already exponentiated (as open_clip passes it): a
            number, or a 0-d tensor that may require grad.
        logit_bias: Added to every logit, as in open_clip. A softmax does not see it: it changes
            no value and its gradient is zero.
        target: Index into ``text_features`` of each image's text, shape [B].
        where: At most two ``PairFilter`` over images and texts that say which may be negatives of
            each other (e.g. no duplicate captions); positives always count.
        label_smoothing: The share of the target that is spread over all texts (images), as in
            ``F.cross_entropy``.
        weights: Of each image and its texts, shape [B].
        normalize: Divide rows by their length first. Default: they come normalized.
        reduction: ``"mean"`` (weighted) or ``"sum"`` over the images, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or for ``reduction="none"`` shape [B], the mean of both directions (and of
        all captions) for each image; float32 (float64 for float64 inputs). A single pair has no
        negatives and loss 0; the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    if over_several(gather, group):
        return over_ranks(clip, locals())
    captions = isinstance(text_features, Tensor) and text_features.dim() == 3
    texts = text_features.flatten(0, 1) if captions else text_features
    images, texts, scale = as_image_text(
        image_features, texts, logit_scale, matching=target is None and not captions
    )
    check_reduction(reduction)
    if captions and text_features.shape[0] != images.shape[0]:
        raise ValueError(
            f"text_features: expected captions [B, C, D] of {images.shape[0]} images, "
            f"got shape {list(text_features.shape)}"
        )
    if target is not None:
        if captions:
            raise ValueError("target: expected None with captions of each image, got a tensor")
        check_indices("target", target, images, texts.shape[0])
    filters = as_filters(where, most=2)
    weights = as_weights(weights, images, images.shape[0], "images")
    check_smoothing(label_smoothing, captions=captions, where=filters)
    settings = {"logit_bound": logit_bound(normalize, scale=logit_scale), "backend": backend}
    if captions or target is not None or label_smoothing:
        of_image = _Captions.of(images, texts, target, text_features.shape[1] if captions else 1)
        losses = _losses(
            images, texts, scale, of_image, filters, label_smoothing, normalize, settings
        )
        loss = weighted_total(losses, weights, reduction)
    else:
        recipe = Recipe("row_col_logsumexp", "softplus", normalize)
        each = reduction if weights is None else "none"
        loss = contrast(recipe, images, texts, scale, filters, reduction=each, **settings)
        loss = loss if weights is None else weighted_total(loss, weights, reduction)
    if logit_bias is not None:
        logit_bias = as_scalar("logit_bias", logit_bias, images)
        if isinstance(logit_bias, Tensor):  # a parameter that is used gets a gradient: zero
            loss = torch.add(loss, logit_bias, alpha=0)
    return loss


class ClipLoss(LossModule):
    """``clip`` as a module, called as open_clip calls its loss: ``loss(image_features,
    text_features, logit_scale, logit_bias=None, output_dict=False, *, target=None, where=(),
    weights=None)``.

    Settings are the function's other arguments.
    """

    function = clip
    inputs = "image_features", "text_features", "logit_scale", "logit_bias", "output_dict"
    options = "target", "where", "weights"

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The loss, or ``{"contrastive_loss": loss}`` if ``output_dict``."""
        options = self._named(inputs, options)
        as_dict = options.pop("output_dict", False)
        loss = super().forward(**options)
        return {"contrastive_loss": loss} if as_dict else loss


class _Captions(NamedTuple):
    """Which texts belong to which images.

    Args:
        places: Of each image's texts among all, [B, C].
        others: Keeps the pairs that do not belong together.
    """

    places: Tensor
    others: PairFilter

    @classmethod
    def of(cls, images: Tensor, texts: Tensor, target: Tensor | None, each: int) -> _Captions:
        batch = the_batch()
        index = torch.arange(texts.shape[0], device=texts.device)
        if target is not None:
            text = batch.positions(texts.shape[0], texts.device)
            others = PairFilter(text.index_select(0, target), text, "different")
            return cls(target.long()[:, None], others)
        image = batch.positions(images.shape[0], images.device)
        others = PairFilter(image, image.repeat_interleave(each), "different")
        return cls(index.view(images.shape[0], each), others)


def _losses(
    images: Tensor,
    texts: Tensor,
    scale: float | Tensor,
    captions: _Captions,
    filters: tuple[PairFilter, ...],
    label_smoothing: float,
    normalize: bool,
    settings: dict[str, Any],
) -> Tensor:
    """Of each image and its texts, [B]."""
    settings = settings | {"compute_dtype": default_compute_dtype(images)}
    images, texts = (float_rows(x, normalize=normalize) for x in (images, texts))
    where = captions.others, *filters
    of_images, of_texts = row_col_logsumexp(images, texts, scale, where=where, **settings)
    own = texts.index_select(0, captions.places.flatten())
    own = own.view(*captions.places.shape, images.shape[1])  # [B, C, D]
    positive = scale * (images[:, None] * own).sum(-1)  # [B, C]
    by_image = softplus(of_images[:, None].expand_as(positive), positive)
    by_text = softplus(
        of_texts.index_select(0, captions.places.flatten()).view_as(positive), positive
    )
    losses = (by_image + by_text) / 2
    if label_smoothing:  # the mean over all keys is one product with their mean
        of_texts, of_images = map(_mean_of_all, (texts, images))
        of_all = (images * of_texts + own[:, 0] * of_images).sum(-1)
        losses = losses + label_smoothing * (positive - scale * of_all[:, None] / 2)
    return losses.sum(1) / max(captions.places.shape[1], 1)


def _mean_of_all(rows: Tensor) -> Tensor:
    """[D]."""
    batch = the_batch()
    return batch.sum(rows.sum(0)) / batch.count(rows.shape[0])
