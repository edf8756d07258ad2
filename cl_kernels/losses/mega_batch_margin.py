"""The margin loss of mega-batches: each pair against its hardest negative."""

from __future__ import annotations

from torch import Tensor

from cl_kernels.checks import as_scalar
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import Reduction, as_inputs, check_reduction, check_same_rows
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.one_step import Embeddings, Pull, one_step, products, pull_products, times
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group


def mega_batch_margin(
    anchors: Tensor,
    positives: Tensor,
    *,
    positive_margin: float | Tensor = 0.8,
    negative_margin: float | Tensor = 0.3,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Pairs shall be more similar than one margin, hardest negatives less than another.

    ``max(0, positive_margin - <a_i, p_i>) + max(0, max_j <a_i, p_j> - negative_margin)``, j other
    than i. The hardest negative of a large batch is that of Wieting and Gimpel, "ParaNMT-50M:
    Pushing the Limits of Paraphrastic Sentence Embeddings with Millions of Machine Translations"
    (2018), section on mega-batching; the two margins are those of sentence-transformers.

    Args:
        anchors: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        positives: Row i is the positive of anchor i, and a negative of all others, shape [B, D].
        positive_margin: What a pair's similarity shall reach: a number, or a 0-d tensor that may
            require grad.
        negative_margin: What that of its hardest negative shall stay below, likewise.
        normalize: Divide rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over the pairs, or ``"none"``.
        backend: Which backend serves the search.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        A single pair has no negative; the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = mega_batch_margin(sentences, paraphrases)
    """
    if over_several(gather, group):
        return over_ranks(mega_batch_margin, locals())
    anchors, positives = as_inputs(anchors=anchors, positives=positives)
    check_same_rows("positives", positives, "anchors", anchors)
    positive_margin = as_scalar("positive_margin", positive_margin, anchors)
    negative_margin = as_scalar("negative_margin", negative_margin, anchors)
    check_reduction(reduction)
    batch = the_batch()
    index = batch.positions(anchors.shape[0], anchors.device)
    hardest = batch.topk(
        anchors.detach(), positives.detach(), 1, normalize=normalize,
        where=PairFilter(index, index, "different"), backend=backend,
    ).indices[:, 0]  # fmt: skip
    margins = positive_margin, negative_margin
    return _losses((anchors, positives), margins, (hardest,), normalize, reduction)


@one_step
def _losses(
    anchors: Embeddings,
    positives: Embeddings,
    positive_margin: Tensor,
    negative_margin: Tensor,
    hardest: Tensor,
) -> tuple[Tensor, Pull]:
    batch, at = the_batch(), hardest.clamp_min(0)
    negatives = batch.rows_at(positives.rows, at)
    near = (positive_margin - products(anchors, positives)).relu()
    far = ((anchors.rows * negatives).sum(1) - negative_margin).relu()
    far = far.masked_fill(hardest < 0, 0)

    def pull(grad: Tensor | None) -> tuple[Tensor, Tensor]:
        by_near, by_far = (times(grad, gap.sign()) for gap in (near, far))
        pull_products(anchors, positives, -by_near)
        anchors.add_weighted(by_far, negatives)
        positives.add_at(at, by_far[:, None] * anchors.rows, batch)
        return by_near.sum(), -by_far.sum()

    return near + far, pull


class MegaBatchMarginLoss(LossModule):
    """``mega_batch_margin`` as a module: ``loss(anchors, positives)``.

    Settings are the function's other arguments; margins may be an ``nn.Parameter`` (0-d), which
    are learned.
    """

    function = mega_batch_margin
    inputs = "anchors", "positives"
