"""The losses of all triplets of a batch, some anchors at a time.

A tile of similarities is made once. An anchor's positives then take their turns as thresholds of
what is in its row: all at once in a small batch, else one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._ops import define, new_like
from cl_kernels.losses.common import in_full

FEW = 1 << 20  # similarities, or triplets, that are held at once


class AllTriplets(NamedTuple):
    """
    Args:
        losses: The sum over each anchor's triplets, [B].
        active: How many triplets have a hinge above 0, int64.
        every: How many there are, int64.
        grad_rows: For a gradient of every anchor's loss, [B, D]; empty where it is not needed.
        grad_margin: Likewise, 0-d.
    """

    losses: Tensor
    active: Tensor
    every: Tensor
    grad_rows: Tensor
    grad_margin: Tensor


def all_triplets(
    rows: Tensor,
    labels: Tensor,
    margin: Tensor,
    grad: Tensor | None,
    *,
    soft: bool,
    distance: str,
    needed: bool,
) -> AllTriplets:
    """``max(0, margin + d(a, p) - d(a, n))``.

    Args:
        rows: [B, D], float32 or float64.
        labels: int64 [B].
        margin: 0-d.
        grad: The gradient of each anchor's loss, [B]; None: 1.
        soft: softplus in place of the hinge.
        distance: "cosine", of whatever rows, "squared_euclidean" or "euclidean".
        needed: Whether the gradients are.
    """
    return AllTriplets(*_operation(rows, labels, margin, soft, distance, grad, needed))


Turn = tuple[Tensor, Tensor | None]  # positives of anchors, [n, R], and which of these are none


class _Batch(NamedTuple):
    """A small batch: all anchors at once, with all their positives."""

    order: None
    labels: Tensor
    counts: Tensor
    only_turn: Turn

    @classmethod
    def of(cls, labels: Tensor) -> _Batch | None:
        """None if the batch is not small."""
        B = len(labels)
        if not 0 < B * B <= FEW:
            return None
        positive = (labels[:, None] == labels).float()
        counts = positive.sum(1).long()
        most = int(counts.max()) - 1
        if most * B * B > FEW:
            return None
        found = positive.fill_diagonal_(0).topk(most)
        return cls(None, labels, counts, (found.indices, found.values == 0))

    def parts(self) -> Iterator[slice]:
        return iter((slice(0, len(self.labels)),))

    def turns(self, part: slice) -> Iterator[Turn]:
        return iter((self.only_turn,))


class _Classes(NamedTuple):
    """Rows ordered by class, the largest classes first: those that have so many positives are the
    first so many rows.

    Args:
        order: Which rows these are, [B]; the others are in this order.
        labels: Their labels.
        counts: How many rows their classes have.
        place: Which rows of their classes they are.
        sizes: How many rows have at least one positive, two, three, ...
    """

    order: Tensor
    labels: Tensor
    counts: Tensor
    place: Tensor
    sizes: list[int]

    @classmethod
    def of(cls, labels: Tensor) -> _Classes:
        labels, order = labels.sort(stable=True)
        first = torch.searchsorted(labels, labels)
        counts = torch.searchsorted(labels, labels, right=True) - first
        place = torch.arange(len(labels), device=labels.device) - first
        counts, by_count = counts.sort(descending=True, stable=True)
        most = int(counts[0]) if len(counts) else 0
        rounds = torch.arange(1, max(most, 1), device=labels.device)
        sizes = torch.searchsorted(-counts, -rounds).tolist()  # rows of larger classes
        return cls(order[by_count], labels[by_count], counts, place[by_count], sizes)

    def parts(self) -> Iterator[slice]:
        """Some anchors at a time, of those that have a positive."""
        some, few = self.sizes[0] if self.sizes else 0, max(1, FEW // max(len(self.labels), 1))
        return (slice(start, min(start + few, some)) for start in range(0, some, few))

    def turns(self, part: slice) -> Iterator[Turn]:
        """A positive of each of the first anchors of a part, which have so many: in round r it is
        the r-th row after the anchor's in its class, around the end."""
        for shift, size in enumerate(self.sizes, 1):
            stop = min(size, part.stop)
            if stop <= part.start:
                return
            index = torch.arange(part.start, stop, device=self.place.device)
            place, counts = (x[part.start : stop] for x in (self.place, self.counts))
            yield (index - place + (place + shift) % counts)[:, None], None


class Distance:
    """Of anchors and other rows, some anchors at a time."""

    def __init__(self, name: str, anchors: Tensor, others: Tensor):
        self.anchors, self.others, self.euclidean = anchors, others, name == "euclidean"
        self.squares = None if name == "cosine" else others.square().sum(1)

    def negated(self, part: slice) -> Tensor:
        """u, but for what does not depend on the other row."""
        anchors, squares = self.anchors[part], self.squares
        u = in_full(anchors, self.others.T)
        if squares is None:
            return u
        u.mul_(2).sub_(squares)
        if not self.euclidean:
            return u
        of_anchors = squares[part] if self.anchors is self.others else anchors.square().sum(1)
        return u.sub_(of_anchors[:, None]).neg_().clamp_min_(0).sqrt_().neg_()

    def add_gradients(
        self, part: slice, u: Tensor, pull: Tensor, of_anchors: Tensor, of_others: Tensor
    ) -> None:
        """Of u's ``pull``, whose memory is taken as that of u is, to those of all."""
        anchors = self.anchors[part]
        if self.euclidean:  # that of its square; at 0 it is taken to be 0
            pull.div_(u.mul_(-2).masked_fill_(u == 0, torch.inf))
            of_anchors[part].addcmul_(pull.sum(1)[:, None], anchors, value=-2)
        if self.squares is not None:
            pull.mul_(2)
            of_others.addcmul_(pull.sum(0)[:, None], self.others, value=-1)
        of_anchors[part].add_(in_full(pull, self.others))
        of_others.add_(in_full(pull.T, anchors))


class _Sums:
    """What all triplets add up to."""

    def __init__(self, rows: Tensor, labels: Tensor, distance: str, grad, needed: bool):
        self.grad, self.needed = grad, needed
        self.distance = Distance(distance, rows, rows)
        self.losses, self.active = rows.new_zeros(len(rows)), labels.new_zeros(())
        self.grad_rows, self.grad_margin = torch.zeros_like(rows if needed else rows[:0]), 0

    def part(self, part: slice, batch: _Batch | _Classes, margin: Tensor, soft: bool) -> None:
        """Adds the triplets of some anchors."""
        u = self.distance.negated(part)
        same = batch.labels[part, None] == batch.labels
        negatives, pull = u.masked_fill(same, -torch.inf), torch.zeros_like(u)
        for turn in batch.turns(part):
            self._turn(part, u, negatives, pull, turn, margin, soft)
        if not self.needed:
            return
        self.distance.add_gradients(part, u, pull, self.grad_rows, self.grad_rows)

    def _turn(self, part: slice, u, negatives, pull, turn: Turn, margin, soft: bool) -> None:
        """Adds the triplets of some positives of a part's first anchors."""
        at, none = turn
        count = len(at)
        threshold = margin - u[:count].gather(1, at)
        if none is not None:
            threshold.masked_fill_(none, -torch.inf)
        gap = negatives[:count, None] + threshold[:, :, None]  # [anchors, positives, negatives]
        value = F.softplus(gap, threshold=40) if soft else gap.relu_()
        self.losses[part][:count].add_(value.sum((1, 2)))
        by_gap = gap.sigmoid_() if soft else gap > 0
        by_threshold = by_gap.sum(2)
        if not soft:
            self.active += by_threshold.sum()
        if not self.needed:
            return
        by_threshold = by_threshold.to(pull.dtype)
        by_gap = by_gap[:, 0] if at.shape[1] == 1 else by_gap.sum(1, dtype=pull.dtype)
        if self.grad is not None:
            grad = self.grad[part][:count, None]
            by_gap, by_threshold = by_gap * grad, by_threshold * grad
        pull[:count].add_(by_gap)
        pull[:count].scatter_add_(1, at, -by_threshold)
        self.grad_margin = self.grad_margin + by_threshold.sum()


def _all_triplets(rows, labels, margin, soft: bool, distance: str, grad, needed: bool):
    B, batch = len(rows), _Batch.of(labels) or _Classes.of(labels)
    if batch.order is not None:
        rows = rows.index_select(0, batch.order)
        grad = None if grad is None else grad.index_select(0, batch.order)
    if distance != "cosine":  # of rows far from the origin it would lose the digits
        rows = rows - rows.mean(0)
    sums = _Sums(rows, labels, distance, grad, needed)
    for part in batch.parts():
        sums.part(part, batch, margin, soft)
    results = sums.losses, sums.grad_rows
    if batch.order is not None:
        results = (
            torch.empty_like(x).index_copy_(0, batch.order, x) if len(x) else x for x in results
        )
    losses, grad_rows = results
    count = ((batch.counts - 1) * (B - batch.counts)).sum()
    grad_margin = torch.as_tensor(sums.grad_margin, dtype=rows.dtype, device=rows.device)
    return losses, sums.active, count, grad_rows, grad_margin


def _fake(rows, labels, margin, soft, distance, grad, needed: bool):
    count = labels.new_empty(())
    of_rows = new_like(rows, *(rows.shape if needed else (0, rows.shape[1])))
    return new_like(rows, rows.shape[0]), count, torch.empty_like(count), of_rows, new_like(rows)


_operation = define(
    "all_triplets(Tensor rows, Tensor labels, Tensor margin, bool soft, str distance, Tensor? grad,"
    " bool needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _all_triplets,
    _fake,
)
