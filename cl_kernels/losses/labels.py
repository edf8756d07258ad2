"""What losses of labelled rows share: labels, and the sums of each anchor's positives.

The sum of an anchor's similarities to its positives is linear in them, so it is one product with
the sum of the positives: O(N D), no tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._numbers import check_integers
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.checks import check_embeddings
from cl_kernels.csr import CSR
from cl_kernels.pairs import PairFilter, count_same


def as_labels(name: str, labels: Tensor, like: Tensor, of: str) -> Tensor:
    """One int64 label for each row of ``like``, the argument named ``of``."""
    check_integers(name, labels)
    rows = like.shape[0]
    if labels.dim() != 1 or labels.shape[0] != rows:
        raise ValueError(
            f"{name}: expected one label for each of the {rows} rows of {of}, "
            f"got shape {list(labels.shape)}"
        )
    if labels.device != like.device:
        raise ValueError(f"{name}: expected the device of {of}, {like.device}, got {labels.device}")
    return labels.long().contiguous()


def labels_of(x: Tensor, labels: Tensor) -> Tensor:
    """Both checked: embeddings, and one label for each."""
    check_embeddings("x", x)
    return as_labels("labels", labels, x, "x")


def same_label(labels: Tensor) -> tuple[PairFilter, PairFilter]:
    """Keeps the positives of rows among themselves: those of a row's label, without itself."""
    index = torch.arange(labels.shape[0], device=labels.device)
    return PairFilter(labels, labels, "same"), PairFilter(index, index, "different")


def other_label(labels: Tensor) -> PairFilter:
    """Keeps the negatives of rows among themselves."""
    return PairFilter(labels, labels, "different")


@in_graph
def same_label_similarity(
    anchors: Tensor, labels: Tensor, keys: Tensor | None = None, key_labels: Tensor | None = None
) -> Tensor:
    """Sum of each anchor's similarities to the keys of its label, [M]. Default: to the other
    anchors, itself excluded."""
    return differentiable(_SameLabelSimilarity, anchors, labels, keys, key_labels)


def listed_similarity(anchors: Tensor, keys: Tensor, lists: CSR) -> Tensor:
    """Sum of each anchor's similarities to the keys that its list names, [M]."""
    named = keys.index_select(0, lists.keys)
    sums = anchors.new_zeros(anchors.shape).index_add(0, lists.rows(), named)
    return (anchors * sums).sum(1)


class _SameLabelSimilarity(torch.autograd.Function):
    """Composed from torch's operations its backward pass takes twice as long at small batches."""

    @staticmethod
    def forward(ctx: Any, anchors, labels, keys, key_labels):
        others = (anchors, labels) if keys is None else (keys, key_labels)
        sums = _sums_of_label(labels, *others, itself=keys is None)
        ctx.save_for_backward(anchors, labels, key_labels, sums)
        return (anchors * sums).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        anchors, labels, key_labels, sums = ctx.saved_tensors
        grad = grads[0][:, None]
        itself = key_labels is None
        back = _sums_of_label(labels if itself else key_labels, grad * anchors, labels, itself)
        return (
            (back.addcmul_(grad, sums), None, None, None)
            if itself
            else (grad * sums, None, back, None)
        )


def _sums_of_label(labels: Tensor, rows: Tensor, row_labels: Tensor, itself: bool) -> Tensor:
    """Sum of the rows of each label, [M, D]; ``itself``: but for the row of the same number."""
    M, (N, D) = labels.shape[0], rows.shape
    if isinstance(M, int) and isinstance(N, int) and min(M, N) <= D:
        # A mask no larger than embeddings. (Autocast leaves products into a buffer alone.)
        same = (labels[:, None] == row_labels).to(rows.dtype)
        if itself:
            same.fill_diagonal_(0)
        return torch.mm(same, rows, out=rows.new_empty(M, D))
    ordered = row_labels.sort().values
    class_of_row = torch.searchsorted(ordered, row_labels)  # a number below N
    sums = torch.zeros_like(rows).index_add_(0, class_of_row, rows)
    first = torch.searchsorted(ordered, labels)
    found = sums.index_select(0, first.clamp_(max=max(N - 1, 0)))
    counts = count_same(labels, row_labels)
    # Nobody has this label; or, but for rounding, nothing is left.
    found = found - rows if itself else found
    return found.masked_fill_((counts == int(itself))[:, None], 0)


def total_of(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Mean or sum over the rows that count; for "none" the others are 0."""
    losses = torch.where(counted, losses, 0)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum().clamp_min(1) if reduction == "mean" else losses.sum()


def segment_logsumexp(logits: Tensor, rows: Tensor, count: int, *, empty: float = 0.0) -> Tensor:
    """Of the logits of each row, [count]; ``empty`` of none, without a gradient."""
    top = logits.new_full((count,), -torch.inf)
    top = top.scatter_reduce(0, rows, logits.detach(), "amax")
    top = torch.where(top == -torch.inf, 0, top)
    total = top.new_zeros(count).index_add(0, rows, (logits - top.index_select(0, rows)).exp())
    some = total > 0
    return torch.where(some, top + torch.where(some, total, 1).log(), empty)
