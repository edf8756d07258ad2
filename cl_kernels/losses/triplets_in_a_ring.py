"""The losses of all triplets of a batch of which each process has some rows.

Anchors stay, other rows go round: once to note how far each positive is, once as negatives, and
once more as positives, for what all negatives together make of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.losses.all_triplets import FEW, AllTriplets, Distance
from cl_kernels.losses.batch import Batch
from cl_kernels.pairs import count_same
from cl_kernels.ranks.round import Visitors, counts_of_all, go_round


def triplets_in_a_ring(
    rows: Tensor,
    labels: Tensor,
    margin: Tensor,
    grad: Tensor | None,
    *,
    batch: Batch,
    soft: bool,
    distance: str,
    needed: bool,
) -> AllTriplets:
    """As ``all_triplets``, of this rank's anchors among all rows."""
    ranks = batch.ranks
    assert ranks is not None
    if distance != "cosine":  # of rows far from the origin it would lose the digits
        rows = rows - batch.sum(rows.sum(0)) / batch.count(len(rows))
    every = batch.everyone(labels)
    positives = count_same(labels, every) - 1  # of each anchor
    counts = counts_of_all(ranks, "triplets", len(rows), rows.device)
    anchors = _Anchors(ranks.rank, rows, labels, distance, positives)
    sums = _Sums(anchors, margin, soft, grad, needed)
    visits = [anchors.note_positives, sums.of_negatives]
    visits += [sums.of_positives] if needed else []
    found = [go_round(ranks, [rows, labels], counts, visit) for visit in visits]
    grad_rows = sum((x for of_rows in found for x in of_rows), sums.grad_anchors)
    count = (positives * (len(every) - 1 - positives)).sum()
    return AllTriplets(sums.losses, sums.active, count, grad_rows, sums.by_threshold.sum())


class _Anchors:
    """
    Args:
        rank: Theirs.
        rows: [n, D].
        labels: [n].
        distance: By name.
        positives: How many each has, [n].
    """

    def __init__(self, rank: int, rows: Tensor, labels: Tensor, distance: str, positives: Tensor):
        self.rank, self.rows, self.labels, self.distance = rank, rows, labels, distance
        most = int(positives.max()) if len(positives) else 0
        self.near = rows.new_full((len(rows), most), torch.inf)  # their positives' u; inf: none

    def note_positives(self, visitors: Visitors) -> list[Tensor]:
        """In the order in which they come."""
        for met in self.meetings(visitors):
            self.near[met.anchor, met.place] = met.u[met.positive]
        return []

    def meetings(self, visitors: Visitors) -> Iterator[_Meeting]:
        """Some anchors at a time with all visitors."""
        rows, labels = visitors.rows
        if visitors.owner == self.rank:  # each rank meets its own rows first
            self.noted = labels.new_zeros(len(self.rows))
        distance = Distance(self.distance, self.rows, rows)
        step = max(1, FEW // max(len(rows), 1))
        for start in range(0, len(self.rows) if len(rows) else 0, step):
            part = slice(start, min(start + step, len(self.rows)))
            same = self.labels[part, None] == labels
            positive = same.clone()
            if visitors.owner == self.rank:
                itself = torch.arange(part.start, part.stop, device=rows.device)
                positive[itself - start, itself] = False
            place = positive.cumsum(1) - 1 + self.noted[part, None]
            self.noted[part] += positive.sum(1)
            anchor = torch.arange(part.start, part.stop, device=rows.device)[:, None]
            anchor = anchor.expand_as(positive)[positive]
            u = distance.negated(part)
            yield _Meeting(part, distance, u, same, positive, anchor, place[positive])


class _Meeting(NamedTuple):
    """
    Args:
        part: Which anchors.
        distance: Theirs to the visitors.
        u: The negated distances.
        same: Which pairs are of one label.
        positive: Which of these are no row with itself.
        anchor: Of each of those, and its place among its anchor's positives.
        place: Likewise.
    """

    part: slice
    distance: Distance
    u: Tensor
    same: Tensor
    positive: Tensor
    anchor: Tensor
    place: Tensor


class _Sums:
    """What all triplets of the anchors add up to."""

    def __init__(
        self, anchors: _Anchors, margin: Tensor, soft: bool, grad: Tensor | None, needed: bool
    ):
        rows = anchors.rows
        self.anchors, self.margin, self.soft = anchors, margin, soft
        self.grad, self.needed = grad, needed
        self.losses, self.active = rows.new_zeros(len(rows)), anchors.labels.new_zeros(())
        self.grad_anchors = torch.zeros_like(rows if needed else rows[:0])
        self.by_threshold = torch.zeros_like(anchors.near)

    def of_negatives(self, visitors: Visitors) -> list[Tensor]:
        of_theirs = torch.zeros_like(visitors.rows[0])
        for met in self.anchors.meetings(visitors):
            negatives, pull = met.u.masked_fill(met.same, -torch.inf), torch.zeros_like(met.u)
            for place, near in enumerate(self.anchors.near[met.part].unbind(1)):
                gap = negatives + (self.margin - near)[:, None]
                value = F.softplus(gap, threshold=40) if self.soft else gap.relu()
                self.losses[met.part] += value.sum(1)
                by_gap = gap.sigmoid() if self.soft else gap > 0
                if not self.soft:
                    self.active += by_gap.sum()
                by_gap = by_gap.to(pull.dtype)
                if self.grad is not None:
                    by_gap = by_gap * self.grad[met.part, None]
                pull += by_gap
                self.by_threshold[met.part, place] += by_gap.sum(1)
            self._add_gradients(met, pull, of_theirs)
        return [of_theirs] if self.needed else []

    def of_positives(self, visitors: Visitors) -> list[Tensor]:
        of_theirs = torch.zeros_like(visitors.rows[0])
        for met in self.anchors.meetings(visitors):
            pull = torch.zeros_like(met.u)
            pull[met.positive] = -self.by_threshold[met.anchor, met.place]
            self._add_gradients(met, pull, of_theirs)
        return [of_theirs]

    def _add_gradients(self, met: _Meeting, pull: Tensor, of_theirs: Tensor) -> None:
        if self.needed:
            met.distance.add_gradients(met.part, met.u, pull, self.grad_anchors, of_theirs)
