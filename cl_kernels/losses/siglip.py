"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

from torch import Tensor

from cl_kernels.calls import number_tensor
from cl_kernels.checks import as_scalar
from cl_kernels.losses.clip import ClipLoss
from cl_kernels.losses.common import Reduction, as_image_text, check_reduction, logit_bound
from cl_kernels.losses.contrast import Recipe, contrast


def siglip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    normalize: bool = False,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Every pair of an image and a text is a binary classification of its own.

    ``loss = -1/B sum_ij log sigmoid(l_ij (logit_scale <image_i, text_j> + logit_bias))`` with
    ``l_ij = 1`` for i = j and -1 otherwise. Zhai et al., "Sigmoid Loss for Language Image
    Pre-Training" (2023), equation 1.

    Args:
        image_features: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        text_features: Row i belongs to image i, shape [B, D], same dtype and device.
        logit_scale: Inverse temperature, already exponentiated (as open_clip passes it): a
            number, or a 0-d tensor that may require grad.
        logit_bias: Added to every logit: a number, or a 0-d tensor that may require grad. The
            paper starts it at -10.
        normalize: Divide rows by their length first. Default: they come normalized.
        reduction: ``"mean"`` or ``"sum"`` over the images, or ``"none"``.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or for ``reduction="none"`` shape [B], the sum over the texts for each image;
        float32 (float64 for float64 inputs). The mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    image_features, text_features, scale = as_image_text(image_features, text_features, logit_scale)
    check_reduction(reduction)
    bias = bound = None
    if logit_bias is not None:
        bias = number_tensor(as_scalar("logit_bias", logit_bias, image_features), image_features)
    else:
        bound = logit_bound(normalize, scale=logit_scale)
    return contrast(
        Recipe("row_softplus_sum", "sigmoid", normalize),
        image_features,
        text_features,
        scale,
        logit_bound=bound,
        reduction=reduction,
        backend=backend,
        vectors={"query_bias": bias},
    )


class SigLipLoss(ClipLoss):
    """``siglip`` as a module, called as open_clip calls its loss: ``loss(image_features,
    text_features, logit_scale, logit_bias=None, output_dict=False)``.

    Settings are the function's other arguments.
    """

    function = siglip
