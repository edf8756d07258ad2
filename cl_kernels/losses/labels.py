"""What losses of labelled rows share: labels, and the sums of each anchor's positives.

The sum of an anchor's similarities to its positives is linear in them, so it is one product with
the sum of the positives: O(N D), no tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_integers
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.checks import check_embeddings
from cl_kernels.csr import CSR
from cl_kernels.losses.batch import WHOLE, Batch, sums_by_label, the_batch
from cl_kernels.losses.common import in_full
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
    index = the_batch().positions(labels.shape[0], labels.device)
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


def mean_similarity_of_label(rows: Tensor, labels: Tensor) -> Tensor:
    """Of each row to the others of its label, [R]; 0 without any."""
    counts = SameLabel.of(labels, None, rows).counts()
    return same_label_similarity(rows, labels) / counts.clamp_min(1)


def listed_similarity(anchors: Tensor, keys: Tensor, lists: CSR) -> Tensor:
    """Sum of each anchor's similarities to the keys that its list names, [M]."""
    named = keys.index_select(0, lists.keys)
    sums = anchors.new_zeros(anchors.shape).index_add(0, lists.rows(), named)
    return (anchors * sums).sum(1)


class _SameLabelSimilarity(torch.autograd.Function):
    """Composed from torch's operations its backward pass takes twice as long at small batches."""

    @staticmethod
    def forward(ctx: Any, anchors, labels, keys, key_labels):
        same = SameLabel.of(labels, key_labels, anchors)
        sums = same.sums(anchors if keys is None else keys)
        ctx.save_for_backward(anchors, sums, same.labels, same.key_labels, same.mask)
        ctx.itself, ctx.batch = keys is None, same.batch
        return (anchors * sums).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        anchors, sums, labels, key_labels, mask = ctx.saved_tensors
        grad = grads[0][:, None]
        back = SameLabel(labels, key_labels, mask, ctx.batch).back(grad * anchors)
        if ctx.itself:
            return back.addcmul_(grad, sums), None, None, None
        return grad * sums, None, back, None


class SameLabel(NamedTuple):
    """Which keys are of an anchor's label, as a linear map of rows.

    Args:
        labels: Of the anchors, [M].
        key_labels: Of the keys, [N]; None: these are the anchors, each without itself.
        mask: The map as a matrix, where it is no larger than the embeddings; else None.
        batch: That of the anchors.
    """

    labels: Tensor
    key_labels: Tensor | None
    mask: Tensor | None
    batch: Batch = WHOLE

    @classmethod
    def of(cls, labels: Tensor, key_labels: Tensor | None, like: Tensor) -> SameLabel:
        if key_labels is None and the_batch().parted:
            return cls(labels, None, None, the_batch())
        of_keys = labels if key_labels is None else key_labels
        M, N = labels.shape[0], of_keys.shape[0]
        if not (isinstance(M, int) and isinstance(N, int) and min(M, N) <= like.shape[1]):
            return cls(labels, key_labels, None)
        mask = (labels[:, None] == of_keys).to(like.dtype)
        return cls(labels, key_labels, mask.fill_diagonal_(0) if key_labels is None else mask)

    def counts(self) -> Tensor:
        """How many keys each anchor has, [M]."""
        if self.mask is not None:
            return self.mask.sum(1)
        if self.key_labels is None:
            return count_same(self.labels, self.batch.everyone(self.labels)) - 1
        return count_same(self.labels, self.key_labels)

    def sums(self, rows: Tensor) -> Tensor:
        """Of the keys' rows [N, D] for each anchor, [M, D]."""
        if self.mask is not None:
            return in_full(self.mask, rows)
        if self.key_labels is None:
            sums = self.batch.sums_of_label(self.labels, rows) - rows
            # Of a class of one is left what rounding leaves.
            return sums.masked_fill_((self.counts() == 0)[:, None], 0)
        return sums_by_label(self.labels, rows, self.key_labels)

    def back(self, rows: Tensor) -> Tensor:
        """Of the anchors' rows [M, D] for each key, [N, D]: the transposed map."""
        if self.key_labels is None:
            return self.sums(rows)
        return SameLabel(
            self.key_labels, self.labels, None if self.mask is None else self.mask.T
        ).sums(rows)


def total_of(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Mean or sum over the rows that count; for "none" the others are 0."""
    losses = torch.where(counted, losses, 0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / the_batch().sum(counted.sum()).clamp_min(1)


def segment_logsumexp(logits: Tensor, rows: Tensor, count: int, *, empty: float = 0.0) -> Tensor:
    """Of the logits of each row, [count]; ``empty`` of none, without a gradient."""
    top = logits.new_full((count,), -torch.inf)
    top = top.scatter_reduce(0, rows, logits.detach(), "amax")
    top = torch.where(top == -torch.inf, 0, top)
    total = top.new_zeros(count).index_add(0, rows, (logits - top.index_select(0, rows)).exp())
    some = total > 0
    return torch.where(some, top + torch.where(some, total, 1).log(), empty)
