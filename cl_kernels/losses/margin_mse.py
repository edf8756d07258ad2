"""Margins of a teacher, e.g. of a cross-encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.rows import float_rows


def margin_mse(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor,
    teacher_margin: Tensor,
    *,
    normalize: bool = False,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """Squared error of ``<query, positive> - <query, negative>`` against a teacher's margin.

    Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation" (2020), equation 8. Only the difference of two scores is learned: the teacher's
    scores may be of any size and origin.

    Args:
        query: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        positive: Row i is the positive of query i, shape [B, D], same dtype and device.
        negatives: One of each query, shape [B, D], or several, [B, K, D].
        teacher_margin: The teacher's score of the positive minus that of the negative, shape [B]
            or [B, K]; in inner products, or cosines with ``normalize``. No gradient flows to it.
        normalize: Divide rows by their length first. Default: inner products are compared.
        reduction: ``"mean"`` or ``"sum"`` over all negatives, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, or the shape of ``teacher_margin`` for ``reduction="none"``; float32 (float64
        for float64 inputs). The mean over no negative is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        margin = cross_encoder(queries, positives) - cross_encoder(queries, negatives)
        loss = margin_mse(model(queries), model(positives), model(negatives), margin)
    """
    if over_several(gather, group):
        return over_ranks(margin_mse, locals())
    if isinstance(negatives, Tensor) and negatives.dim() == 3:
        shape = negatives.shape[:2]
        query, positive, rows = as_inputs(
            query=query, positive=positive, negatives=negatives.flatten(0, 1)
        )
        if shape[0] != query.shape[0]:
            raise ValueError(
                f"negatives: expected [B, K, D] with B = {query.shape[0]}, "
                f"got shape {list(negatives.shape)}"
            )
    else:
        query, positive, rows = as_inputs(query=query, positive=positive, negatives=negatives)
        check_same_rows("negatives", rows, "query", query)
        shape = rows.shape[:1]
    check_same_rows("positive", positive, "query", query)
    check_reduction(reduction)
    _check_margin(teacher_margin, shape, query)
    query, positive, rows = (float_rows(x, normalize=normalize) for x in (query, positive, rows))
    if len(shape) == 2:
        of_negatives = (query[:, None] * rows.view(*shape, rows.shape[1])).sum(-1)
        margin = (query * positive).sum(1, keepdim=True) - of_negatives
    else:
        margin = (query * (positive - rows)).sum(1)
    teacher = teacher_margin.detach().to(margin.dtype)
    if reduction == "mean" and not margin.numel():
        return margin.sum()
    return F.mse_loss(margin, teacher, reduction=reduction)


class MarginMSELoss(LossModule):
    """``margin_mse`` as a module: ``loss(query, positive, negatives, teacher_margin)``.

    Settings are the function's other arguments.
    """

    function = margin_mse
    inputs = "query", "positive", "negatives", "teacher_margin"


def _check_margin(margin: Tensor, shape: torch.Size, query: Tensor) -> None:
    if not isinstance(margin, Tensor) or not margin.is_floating_point():
        kind = margin.dtype if isinstance(margin, Tensor) else type(margin).__name__
        raise TypeError(f"teacher_margin: expected a floating-point tensor, got {kind}")
    if margin.shape != shape:
        raise ValueError(
            f"teacher_margin: expected one number for each negative, {list(shape)}, "
            f"got shape {list(margin.shape)}"
        )
    if margin.device != query.device:
        raise ValueError(
            f"teacher_margin: expected the device of query, {query.device}, got {margin.device}"
        )
