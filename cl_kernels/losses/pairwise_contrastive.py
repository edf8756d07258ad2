"""The contrastive loss of pairs, on similarities."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels.checks import as_scalar
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.labels import labels_of, other_label, same_label
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.ranks.group import Group


def pairwise_contrastive(
    x: Tensor,
    labels: Tensor,
    *,
    positive_margin: float | Tensor = 1.0,
    negative_margin: float | Tensor = 0.5,
    normalize: bool = True,
    group: Group | None = None,
    gather: Gather | None = None,
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
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs). The mean over no pair is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = pairwise_contrastive(embeddings, labels, positive_margin=0.9)
    """
    if over_several(gather, group):
        return over_ranks(pairwise_contrastive, locals())
    labels = labels_of(x, labels)
    positive_margin = as_scalar("positive_margin", positive_margin, x)
    negative_margin = as_scalar("negative_margin", negative_margin, x)
    biased = {"biased": ("query_bias",), "backend": backend}
    positives = visit("self_hinge_sum", x, None, same_label(labels), **biased)
    negatives = visit("self_hinge_sum", x, None, other_label(labels), **biased)
    margins = positive_margin, negative_margin
    return _loss((x,), margins, (positives, negatives), normalize, "sum")


@one_step
def _loss(
    x: Embeddings,
    positive_margin: Tensor,
    negative_margin: Tensor,
    positives: Visit,
    negatives: Visit,
) -> tuple[Tensor, Pull]:
    batch = the_batch()

    def hinges(visit: Visit, sign: int, margin: Tensor) -> tuple[Streamed, Tensor]:
        """Of each row, and over how many pairs their mean is taken."""
        bias = (-sign * margin).expand(x.count).contiguous()
        streamed = Streamed(visit, x, scale=float(sign), query_bias=bias)
        return streamed, batch.sum(streamed.values[1].sum()).clamp_min(1)

    near, count_near = hinges(positives, -1, positive_margin)
    far, count_far = hinges(negatives, 1, negative_margin)

    def pull(grad: Tensor | None) -> tuple[Tensor, Tensor]:
        of_near, of_far = (torch.ones_like(near.value) / n for n in (count_near, count_far))
        (_, by_near), (_, by_far) = near.pull_biased(of_near), far.pull_biased(of_far)
        return by_near.sum(), -by_far.sum()

    return near.value.sum() / count_near + far.value.sum() / count_far, pull


class PairwiseContrastiveLoss(LossModule):
    """``pairwise_contrastive`` as a module: ``loss(x, labels)``.

    Settings are the function's other arguments; margins may be an ``nn.Parameter`` (0-d), which
    are learned.
    """

    function = pairwise_contrastive
    inputs = "x", "labels"
