"""The proxy anchor loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_kernels.calls import default_compute_dtype, number_tensor
from cl_kernels.checks import as_scalar, check_indices
from cl_kernels.losses.common import as_inputs, check_positive, logit_bound
from cl_kernels.losses.epilogues import softplus
from cl_kernels.losses.labels import as_labels, segment_logsumexp
from cl_kernels.losses.own_weight import LossWithWeight
from cl_kernels.pairs import PairFilter
from cl_kernels.statistics.functions import row_logsumexp
from cl_kernels.statistics.rows import float_rows


def proxy_anchor(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    alpha: float = 32.0,
    margin: float | Tensor = 0.1,
    normalize: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Every class's proxy is an anchor, drawn to the rows of its class and away from all others.

    The mean of ``log(1 + sum_p exp(-alpha (s_pc - margin)))`` over the classes c that have rows p
    in the batch, plus the mean of ``log(1 + sum_n exp(alpha (s_nc + margin)))`` over all classes,
    n the rows of others. Kim et al., "Proxy Anchor Loss for Deep Metric Learning" (2020),
    equation 4. The positives are pairs of a row and its proxy; the negatives are streamed.

    Args:
        x: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        labels: The class of each row, integers in [0, C), shape [B].
        proxies: One row for each class, shape [C, D], same dtype and device as ``x``.
        alpha: Scale of the similarities, more than 0.
        margin: A number, or a 0-d tensor that may require grad.
        normalize: Divide rows by their length first (cosine similarity).
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs); 0 for an empty batch.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = proxy_anchor(embeddings, classes, proxies)
    """
    x, proxies = as_inputs(x=x, proxies=proxies)
    labels = as_labels("labels", labels, x, "x")
    C = proxies.shape[0]
    check_indices("labels", labels, x, C)
    check_positive("alpha", alpha)
    threshold = -alpha * number_tensor(as_scalar("margin", margin, x), x)
    rows, anchors = (float_rows(each, normalize=normalize) for each in (x, proxies))
    similarity = (rows * anchors.index_select(0, labels)).sum(1)
    positives = segment_logsumexp(-alpha * similarity, labels, C, empty=-torch.inf)
    classes = torch.arange(C, device=x.device)
    negatives = row_logsumexp(
        anchors,
        rows,
        alpha,
        where=PairFilter(classes, labels, "different"),
        compute_dtype=default_compute_dtype(x),
        logit_bound=logit_bound(normalize, scale=alpha),
        backend=backend,
    )
    some = (positives > -torch.inf).sum().clamp_min(1)  # classes that have rows
    of_positives = softplus(positives, threshold).sum() / some
    return of_positives + softplus(negatives, threshold).sum() / max(C, 1)


def _kaiming(proxies: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(proxies, mode="fan_out")


class ProxyAnchorLoss(LossWithWeight):
    """``proxy_anchor`` with learned proxies: ``ProxyAnchorLoss(num_classes, dim)`` is called
    ``loss(x, labels)``.

    The proxies, an ``nn.Parameter``, start from He's normal distribution (fan-out); the paper
    trains them at a hundred times the model's learning rate. Without ``num_classes`` and ``dim``
    there are none: ``loss(x, labels, proxies)``. Settings are the function's other arguments.
    """

    proxies: nn.Parameter  # None without num_classes and dim
    function = proxy_anchor
    inputs = "x", "labels", "proxies"
    learned = "proxies"
    initialise = _kaiming
