"""The contrastive loss of pairs, on similarities."""

from __future__ import annotations

from torch import Tensor

from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_scalar
from cl_kernels.losses.labels import labels_of, other_label, same_label
from cl_kernels.losses.module import LossModule
from cl_kernels.statistics.functions import HingeSum, self_hinge_sum
from cl_kernels.statistics.rows import float_rows


def pairwise_contrastive(
    x: Tensor,
    labels: Tensor,
    *,
    positive_margin: float | Tensor = 1.0,
    negative_margin: float | Tensor = 0.5,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Pairs of one label shall be more similar than one margin, all others less than another.

    The mean of ``max(0, positive_margin - s)`` over the pairs of one label for which it is not 0,
    plus that of ``max(0, s - negative_margin)`` over the pairs of different labels. This is the
    linear form on similarities, as pytorch-metric-learning has it: it is a sum that can be
    streamed. Hadsell et al., "Dimensionality Reduction by Learning an Invariant Mapping" (2006),
    equation 4, squares hinges of the Euclidean distance, which can not.

    Args:
        x: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        labels: Integer labels, shape [B].
        positive_margin: What positives shall reach: a number, or a 0-d tensor that may require
            grad. At 1, equal rows count among the pairs or not as their product is rounded.
        negative_margin: What negatives shall stay below, likewise.
        normalize: Divide rows by their length first (cosine similarity).
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs). The mean over no pair is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = pairwise_contrastive(embeddings, labels, positive_margin=0.9)
    """
    labels = labels_of(x, labels)
    positive_margin = as_scalar("positive_margin", positive_margin, x)
    negative_margin = as_scalar("negative_margin", negative_margin, x)
    rows = float_rows(x, normalize=normalize)
    options = {"compute_dtype": default_compute_dtype(x), "backend": backend}
    positives = self_hinge_sum(
        rows, -1.0, where=same_label(labels), query_bias=positive_margin, **options
    )
    negatives = self_hinge_sum(
        rows, 1.0, where=other_label(labels), query_bias=-negative_margin, **options
    )
    return _mean_of_active(positives) + _mean_of_active(negatives)


class PairwiseContrastiveLoss(LossModule):
    """``pairwise_contrastive`` as a module: ``loss(x, labels)``.

    Settings are the function's other arguments; margins may be an ``nn.Parameter`` (0-d), which
    are learned.
    """

    function = pairwise_contrastive
    inputs = "x", "labels"


def _mean_of_active(found: HingeSum) -> Tensor:
    return found.sum.sum() / found.active.sum().clamp_min(1)
