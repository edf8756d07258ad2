"""What losses of labelled rows share: labels, and the sums of each anchor's positives.

The sum of an anchor's similarities to its positives is linear in them, so it is one product with
the sum of the positives: O(N D), no tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_integers
from cl_kernels.checks import check_embeddings
from cl_kernels.csr import CSR
from cl_kernels.pairs import PairFilter


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


class Positives(NamedTuple):
    """Of each anchor.

    Args:
        sums: Sum of its positives' rows, [M, D], differentiable.
        counts: How many they are, int64 [M].
    """

    sums: Tensor
    counts: Tensor

    def mean_similarity(self, anchors: Tensor) -> Tensor:
        """Of each anchor to its positives, [M]; 0 without any."""
        return (anchors * self.sums).sum(1) / self.counts.clamp_min(1)

    def and_more(self, other: Positives) -> Positives:
        return Positives(self.sums + other.sums, self.counts + other.counts)


def of_same_label(labels: Tensor, rows: Tensor, row_labels: Tensor) -> Positives:
    """The rows of each anchor's label, [N, D], itself included if it is one of them."""
    ordered = row_labels.sort().values
    first = torch.searchsorted(ordered, labels)  # which is the class's number, below N
    count = torch.searchsorted(ordered, labels, right=True) - first
    class_of_row = torch.searchsorted(ordered, row_labels)
    sums = torch.zeros_like(rows).index_add(0, class_of_row, rows)
    if not len(rows):
        return Positives(rows.new_zeros(len(labels), rows.shape[1]), count)
    found = sums.index_select(0, first.clamp(max=len(rows) - 1))
    return Positives(found.masked_fill(count[:, None] == 0, 0), count)


def of_same_label_but_itself(rows: Tensor, labels: Tensor) -> Positives:
    """Every row's positives among the rows: those of its label, without itself."""
    sums, count = of_same_label(labels, rows, labels)
    # What is left of a class of one is rounding.
    return Positives((sums - rows).masked_fill(count[:, None] == 1, 0), count - 1)


def of_lists(lists: CSR, rows: Tensor) -> Positives:
    """The rows that each anchor's list names."""
    sums = rows.new_zeros(len(lists.offsets) - 1, rows.shape[1])
    named = rows.index_select(0, lists.keys)
    return Positives(sums.index_add(0, lists.rows(), named), lists.counts())


def total_of(losses: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Mean or sum over the rows that count; for "none" the others are 0."""
    losses = losses.masked_fill(~counted, 0)
    if reduction == "none":
        return losses
    return losses.sum() / counted.sum().clamp_min(1) if reduction == "mean" else losses.sum()
