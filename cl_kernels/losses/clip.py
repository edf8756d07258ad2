"""The symmetric image-text loss of CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels.checks import as_scalar
from cl_kernels.losses.common import Reduction, as_image_text, check_reduction, logit_bound
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.module import LossModule


def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    normalize: bool = False,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy, both from one visit of the logits.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
    (2021), figure 3.

    Args:
        image_features: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        text_features: Row i belongs to image i, shape [B, D], same dtype and device.
        logit_scale: Inverse temperature, already exponentiated (as open_clip passes it): a
            number, or a 0-d tensor that may require grad.
        logit_bias: Added to every logit, as in open_clip. A softmax does not see it: it changes
            no value and its gradient is zero.
        normalize: Divide rows by their length first. Default: they come normalized.
        reduction: ``"mean"`` or ``"sum"`` over the pairs, or ``"none"``.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or for ``reduction="none"`` shape [B], the mean of both directions for each
        pair; float32 (float64 for float64 inputs). A single pair has no negatives and loss 0; the
        mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    image_features, text_features, scale = as_image_text(image_features, text_features, logit_scale)
    check_reduction(reduction)
    loss = contrast(
        Recipe("row_col_logsumexp", "softplus", normalize),
        image_features,
        text_features,
        scale,
        logit_bound=logit_bound(normalize, scale=logit_scale),
        reduction=reduction,
        backend=backend,
    )
    if logit_bias is not None:
        logit_bias = as_scalar("logit_bias", logit_bias)
        if isinstance(logit_bias, Tensor):  # a parameter that is used gets a gradient: zero
            loss = torch.add(loss, logit_bias, alpha=0)
    return loss


class ClipLoss(LossModule):
    """``clip`` as a module, called as open_clip calls its loss: ``loss(image_features,
    text_features, logit_scale, logit_bias=None, output_dict=False)``.

    Settings are the function's other arguments.
    """

    function = clip
    inputs = "image_features", "text_features", "logit_scale", "logit_bias", "output_dict"

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The loss, or ``{"contrastive_loss": loss}`` if ``output_dict``."""
        options = self._named(inputs, options)
        as_dict = options.pop("output_dict", False)
        loss = super().forward(**options)
        return {"contrastive_loss": loss} if as_dict else loss
