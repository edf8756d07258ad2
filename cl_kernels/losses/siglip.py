"""The pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels.calls import number_tensor
from cl_kernels.checks import as_scalar
from cl_kernels.losses.clip import ClipLoss
from cl_kernels.losses.common import Reduction, as_image_text, check_reduction, logit_bound
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.labels import as_labels
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group

Ids = Tensor | tuple[Tensor, Tensor]


def siglip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    ids: Ids | None = None,
    normalize: bool = False,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Every pair of an image and a text is a binary classification of its own.

    ``loss = -1/B sum_ij log sigmoid(l_ij (logit_scale <image_i, text_j> + logit_bias))`` with
    ``l_ij = 1`` for a positive pair and -1 otherwise. Zhai et al., "Sigmoid Loss for Language
    Image Pre-Training" (2023), equation 1.

    Args:
        image_features: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        text_features: Row i belongs to image i, shape [B, D], same dtype and device; any [N, D]
            where ``ids`` say which texts belong to an image.
        logit_scale: Inverse temperature, already exponentiated (as open_clip passes it): a
            number, or a 0-d tensor that may require grad.
        logit_bias: Added to every logit: a number, or a 0-d tensor that may require grad. The
            paper starts it at -10.
        ids: Integers, [B], or those of the images [B] and of the texts [N]: all pairs of equal
            ids are positives. It takes a second visit. Default: text i alone is image i's.
        normalize: Divide rows by their length first. Default: they come normalized.
        reduction: ``"mean"`` or ``"sum"`` over the images, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or for ``reduction="none"`` shape [B], the sum over the texts for each image;
        float32 (float64 for float64 inputs). The mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    if over_several(gather, group):
        return over_ranks(siglip, locals())
    image_features, text_features, scale = as_image_text(
        image_features, text_features, logit_scale, matching=not isinstance(ids, tuple)
    )
    check_reduction(reduction)
    bias = None
    if logit_bias is not None:
        bias = number_tensor(as_scalar("logit_bias", logit_bias, image_features), image_features)
    if ids is not None:
        ids = _as_ids(ids, image_features, text_features)
        options = {"biased": () if bias is None else ("query_bias",), "backend": backend}
        visits = (
            visit(
                "row_softplus_sum", image_features, text_features, PairFilter(*ids, keep), **options
            )
            for keep in ("different", "same")
        )
        pair = image_features, text_features
        return _of_groups(pair, (scale, bias), tuple(visits), normalize, reduction)
    return contrast(
        Recipe("row_softplus_sum", "sigmoid", normalize),
        image_features,
        text_features,
        scale,
        logit_bound=logit_bound(normalize, scale=logit_scale) if bias is None else None,
        reduction=reduction,
        backend=backend,
        vectors={"query_bias": bias},
    )


class SigLipLoss(ClipLoss):
    """``siglip`` as a module, called as open_clip calls its loss: ``loss(image_features,
    text_features, logit_scale, logit_bias=None, output_dict=False, *, ids=None)``.

    Settings are the function's other arguments.
    """

    function = siglip
    options = ("ids",)


def _as_ids(ids: Ids, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    pair = ids if isinstance(ids, tuple) else (ids, ids)
    if len(pair) != 2:
        raise ValueError(f"ids: expected those of images and of texts, got {len(pair)} of them")
    of_images, of_texts = pair
    of_images = as_labels("ids", of_images, images, "image_features")
    return of_images, as_labels("ids", of_texts, texts, "text_features")


@one_step
def _of_groups(
    images: Embeddings,
    texts: Embeddings,
    scale: Tensor,
    bias: Tensor | None,
    negatives: Visit,
    positives: Visit,
) -> tuple[Tensor, Pull]:
    """The loss of each image. Of a sum over all texts less the positives' logits a float32 would
    lose the digits."""

    def softplus_sum(visit: Visit, sign: int) -> Streamed:
        biases = None if bias is None else (sign * bias).expand(images.count).contiguous()
        return Streamed(visit, images, texts, sign * scale, biases)

    far, near = softplus_sum(negatives, 1), softplus_sum(positives, -1)

    def pull(grad: Tensor | None) -> tuple[Tensor, Tensor | None]:
        grad = torch.ones_like(far.value) if grad is None else grad
        (by_far, bias_far), (by_near, bias_near) = far.pull_biased(grad), near.pull_biased(grad)
        return by_far - by_near, None if bias is None else bias_far.sum() - bias_near.sum()

    return far.value + near.value, pull
