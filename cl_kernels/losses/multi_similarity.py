"""The multi-similarity loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from cl_kernels.checks import as_scalar
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import Reduction, check_positive, check_reduction, logit_bound
from cl_kernels.losses.labels import labels_of, other_label, same_label
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step, times
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.ranks.group import Group


def multi_similarity(
    x: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float | Tensor = 0.5,
    mining_margin: float | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Soft maxima over a row's positives and over its negatives, each against a threshold.

    ``log(1 + sum_p exp(-alpha (s_ip - base))) / alpha
    + log(1 + sum_n exp(beta (s_in - base))) / beta`` for row i, whose positives p are the other
    rows of its label and whose negatives n are the rows of other labels. Wang et al.,
    "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning" (2019),
    equation 15. Its mining, equations 9 and 10, is off by default.

    Args:
        x: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        labels: Integer labels, shape [B].
        alpha: Scale of the positives' similarities, more than 0.
        beta: Scale of the negatives' similarities, more than 0.
        base: Threshold of similarities (the paper's lambda): a number, or a 0-d tensor that may
            require grad.
        mining_margin: Keep only negatives more similar than the least similar positive minus this
            margin, and positives less similar than the most similar negative plus it (the paper's
            epsilon, 0.1). A row without positives or without negatives then keeps no pair.
        normalize: Divide rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over all rows, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        The term of a set of pairs that is empty is 0, and the row still counts in the mean; the
        mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = multi_similarity(embeddings, labels, mining_margin=0.1)
    """
    if over_several(gather, group):
        return over_ranks(multi_similarity, locals())
    labels = labels_of(x, labels)
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    base = as_scalar("base", base, x)
    check_reduction(reduction)
    below = above = None
    if mining_margin is not None:
        margin = as_scalar("mining_margin", mining_margin, x)
        negative, positive = _hardest(x.detach(), labels, normalize, backend)
        below, above = negative + margin, positive - margin
    positives = visit(
        "self_logsumexp", x, None, same_label(labels), vectors={"below": below},
        logit_bound=logit_bound(normalize, scale=alpha), backend=backend,
    )  # fmt: skip
    negatives = visit(
        "self_logsumexp", x, None, other_label(labels), vectors={"above": above},
        logit_bound=logit_bound(normalize, scale=beta), backend=backend,
    )  # fmt: skip
    settings = positives, negatives, alpha, beta
    return _losses((x,), (base,), settings, normalize, reduction)


@one_step
def _losses(
    x: Embeddings, base: Tensor, positives: Visit, negatives: Visit, alpha: float, beta: float
) -> tuple[Tensor, Pull]:
    near, far = Streamed(positives, x, scale=-alpha), Streamed(negatives, x, scale=beta)
    above_base, below_base = near.value + alpha * base, far.value - beta * base
    of_near, of_far = (F.softplus(gap, threshold=40) for gap in (above_base, below_base))
    losses = of_near / alpha + of_far / beta

    def pull(grad: Tensor | None) -> tuple[Tensor]:
        of_near = times(grad, above_base.sigmoid() / alpha)
        of_far = times(grad, below_base.sigmoid() / beta)
        near.pull(of_near)
        far.pull(of_far)
        return ((alpha * of_near - beta * of_far).sum(),)

    return losses, pull


class MultiSimilarityLoss(LossModule):
    """``multi_similarity`` as a module: ``loss(x, labels)``.

    Settings are the function's other arguments; ``base`` may be an ``nn.Parameter`` (0-d), which
    is learned.
    """

    function = multi_similarity
    inputs = "x", "labels"


def _hardest(
    x: Tensor, labels: Tensor, normalize: bool, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Of each row's most similar negative and of its least similar positive the similarity, [B]:
    -inf and +inf where there is none, so that nothing is below the one or above the other."""
    settings = {"normalize": normalize, "backend": backend}
    batch = the_batch()
    negative = batch.topk(x, x, 1, where=other_label(labels), **settings)
    positive = batch.topk(x, x, 1, where=same_label(labels), largest=False, **settings)
    return negative.values[:, 0], positive.values[:, 0]
