"""The proxy anchor loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_kernels.checks import as_scalar, check_indices
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import as_inputs, check_positive, logit_bound
from cl_kernels.losses.epilogues import softplus
from cl_kernels.losses.labels import as_labels, segment_logsumexp
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.own_weight import LossWithWeight
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group


def proxy_anchor(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    alpha: float = 32.0,
    margin: float | Tensor = 0.1,
    normalize: bool = True,
    group: Group | None = None,
    gather: Gather | None = None,
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
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, float32 (float64 for float64 inputs); 0 for an empty batch.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = proxy_anchor(embeddings, classes, proxies)
    """
    if over_several(gather, group):
        return over_ranks(proxy_anchor, locals())
    x, proxies = as_inputs(x=x, proxies=proxies)
    labels = as_labels("labels", labels, x, "x")
    C = proxies.shape[0]
    check_indices("labels", labels, x, C)
    check_positive("alpha", alpha)
    margin = as_scalar("margin", margin, x)
    others = PairFilter(torch.arange(C, device=x.device), labels, "different")
    negatives = visit(
        "row_logsumexp", proxies, x, others,
        logit_bound=logit_bound(normalize, scale=alpha), backend=backend,
    )  # fmt: skip
    return _loss((proxies, x), (margin,), (negatives, labels, alpha), normalize, "sum")


@one_step
def _loss(
    proxies: Embeddings,
    x: Embeddings,
    margin: Tensor,
    negatives: Visit,
    labels: Tensor,
    alpha: float,
) -> tuple[Tensor, Pull]:
    own = proxies.rows.index_select(0, labels)
    logits = -alpha * (x.rows * own).sum(1)
    batch = the_batch()
    near = batch.logsumexp(segment_logsumexp(logits, labels, proxies.count, empty=-torch.inf))
    far = Streamed(negatives, proxies, x, alpha)
    threshold = -alpha * margin
    with_rows = (near > -torch.inf).sum().clamp_min(1)
    classes = max(proxies.count, 1)

    def pull(grad: Tensor | None) -> tuple[Tensor]:
        by_near = (near - threshold).sigmoid() / with_rows
        by_far = (far.value - threshold).sigmoid() / classes
        far.pull(by_far)
        of_rows = batch.sum(by_near).index_select(0, labels)
        weight = (logits - near.index_select(0, labels)).exp() * of_rows
        x.add_weighted(-alpha * weight, own)
        proxies.add_at(labels, (-alpha * weight)[:, None] * x.rows)
        return (alpha * (by_near.sum() + by_far.sum()),)

    of_near, of_far = (softplus(value, threshold).sum() for value in (near, far.value))
    return of_near / with_rows + of_far / classes, pull


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
