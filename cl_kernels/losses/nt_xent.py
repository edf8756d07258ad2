"""NT-Xent, the loss of SimCLR."""

from __future__ import annotations

from torch import Tensor

from cl_kernels.losses.common import (
    Reduction,
    as_inputs,
    check_reduction,
    check_same_rows,
    inverse,
    logit_bound,
)
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.module import LossModule
from cl_kernels.pairs import Where, as_filters


def nt_xent(
    view_0: Tensor,
    view_1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    negative_keys: Tensor | None = None,
    where: Where = (),
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Normalized temperature-scaled cross-entropy over both views of a batch.

    Every row of both views is a query: its positive is the other view of the same image, its
    negatives are all other rows (itself excluded) and ``negative_keys``. Chen et al., "A Simple
    Framework for Contrastive Learning of Visual Representations" (2020), equation 1.

    Args:
        view_0: Embeddings of one view, shape [B, D]. float32, float16, bfloat16 or float64.
        view_1: Embeddings of the other view, shape [B, D], same dtype and device.
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        normalize: Divide rows by their length first (cosine similarity).
        negative_keys: Further negatives of every query, shape [K, D], e.g. a queue.
        where: At most one ``PairFilter`` over the 2B rows of both views (view_0 first) that says
            which of them may be negatives of each other; positives always count.
        reduction: ``"mean"`` or ``"sum"`` over the 2B rows, or ``"none"``.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [2B] (view_0's rows first) for ``reduction="none"``; float32
        (float64 for float64 inputs). A row without negatives has loss 0 and gradient 0; the mean
        over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    inputs = {"view_0": view_0, "view_1": view_1}
    if negative_keys is not None:
        inputs["negative_keys"] = negative_keys
    view_0, view_1, *further = as_inputs(**inputs)
    check_same_rows("view_1", view_1, "view_0", view_0)
    check_reduction(reduction)
    scale = inverse(temperature, view_0)
    return contrast(
        Recipe("self_logsumexp", "softplus", normalize),
        view_0,
        view_1,
        scale,
        as_filters(where, most=1),
        *further,
        logit_bound=logit_bound(normalize, temperature=temperature),
        reduction=reduction,
        backend=backend,
    )


class NTXentLoss(LossModule):
    """``nt_xent`` as a module: ``loss(view_0, view_1, negative_keys=None, *, where=())``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = nt_xent
    inputs = "view_0", "view_1", "negative_keys"
    options = ("where",)
