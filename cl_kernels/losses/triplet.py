"""Triplet losses of labelled rows: of all triplets, or of those that are mined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_scalar
from cl_kernels.losses.common import Reduction, check_choice, check_reduction
from cl_kernels.losses.labels import labels_of, other_label, same_label
from cl_kernels.losses.module import LossModule
from cl_kernels.pairs import PairFilter
from cl_kernels.reading import readable
from cl_kernels.search import topk
from cl_kernels.search.gradients import found_products, found_scores
from cl_kernels.statistics.functions import row_hinge_sum, row_softplus_sum
from cl_kernels.statistics.rows import float_rows

_FEW = 1 << 20  # numbers of anchors that may be gathered at once


def triplet(
    x: Tensor,
    labels: Tensor,
    *,
    margin: float | Tensor = 0.2,
    mining: Literal["batch_all", "batch_hard", "semi_hard"] = "batch_all",
    soft: bool = False,
    distance: Literal["cosine", "squared_euclidean", "euclidean"] = "cosine",
    average: Literal["active", "all"] = "active",
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """``max(0, margin + d(a, p) - d(a, n))`` for anchors a, positives p and negatives n of a batch.

    Positives are the other rows of the anchor's label, negatives the rows of other labels. Hermans
    et al., "In Defense of the Triplet Loss for Person Re-Identification" (2017): all triplets
    (equation 6) or each anchor's farthest positive with its nearest negative (equation 5); or, as
    in Schroff et al., "FaceNet" (2015), with its nearest negative that is farther than the
    positive. An anchor that lacks either is left out.

    All triplets are one visit of the rows for every positive that rows have: K - 1 products of
    B x B for classes of K rows. It is meant for small classes.

    Args:
        x: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        labels: Integer labels, shape [B].
        margin: A number, or a 0-d tensor that may require grad.
        mining: Which triplets: see above.
        soft: softplus in place of the hinge. (The paper's soft margin has ``margin=0``.)
        distance: ``"cosine"`` is ``1 - <a, b>``, of whatever rows; ``"squared_euclidean"``; or
            ``"euclidean"``, of which there is no ``"batch_all"``.
        average: The mean is over the triplets whose loss is above 0, or over all that there are.
            A soft loss is always above 0.
        normalize: Divide rows by their length first.
        reduction: ``"mean"`` or ``"sum"`` over triplets, or ``"none"``.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or for ``reduction="none"`` shape [B], the sum over each anchor's triplets;
        float32 (float64 for float64 inputs). The mean over no triplet is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = triplet(embeddings, labels, mining="batch_hard", average="all")
    """
    labels = labels_of(x, labels)
    margin = as_scalar("margin", margin, x)
    check_choice("mining", mining, ("batch_all", "batch_hard", "semi_hard"))
    check_flag("soft", soft)
    check_choice("distance", distance, ("cosine", "squared_euclidean", "euclidean"))
    check_choice("average", average, ("active", "all"))
    check_reduction(reduction)
    if mining == "batch_all" and distance == "euclidean":
        raise ValueError(
            'distance: expected "cosine" or "squared_euclidean" with mining="batch_all", '
            'got "euclidean"'
        )
    if readable(x) and not bool(x.isfinite().all()):
        raise ValueError("x: expected finite embeddings, got others")
    rows = float_rows(x, normalize=normalize)
    if mining == "batch_all":
        options = {"compute_dtype": default_compute_dtype(x), "backend": backend}
        found = _of_all(rows, labels, margin, soft, distance, options)
    else:
        settings = {"normalize": normalize, "backend": backend}
        positive, negative = _mined(x.detach(), labels, mining, distance, settings)
        found = _of_mined(rows, positive, negative, margin, soft, distance)
    if reduction != "mean":
        return found.losses if reduction == "none" else found.losses.sum()
    return found.losses.sum() / (found.active if average == "active" else found.all).clamp_min(1)


class TripletLoss(LossModule):
    """``triplet`` as a module: ``loss(x, labels)``.

    Settings are the function's other arguments; a margin may be an ``nn.Parameter`` (0-d), which
    is learned.
    """

    function = triplet
    inputs = "x", "labels"


class _Found(NamedTuple):
    losses: Tensor  # [B]: the sum over each anchor's triplets
    active: Tensor  # how many triplets have a loss
    all: Tensor  # how many there are


def _mined(
    x: Tensor, labels: Tensor, mining: str, distance: str, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Each anchor's positive and negative, [B]; -1 for none."""
    query = key = x
    if distance != "cosine" and not settings["normalize"]:
        # <a, b> - |b|^2 / 2 falls with the distance: one more column.
        rows = float_rows(x, normalize=False)
        half = rows.square().sum(1, keepdim=True) / 2
        query, key = torch.cat((rows, torch.ones_like(half)), 1), torch.cat((rows, -half), 1)
    positive = topk(query, key, 1, where=same_label(labels), largest=False, **settings)
    below = None
    if mining == "semi_hard":
        below = positive.values[:, 0].masked_fill(positive.indices[:, 0] < 0, -torch.inf)
    negative = topk(query, key, 1, where=other_label(labels), below=below, **settings)
    return positive.indices[:, 0], negative.indices[:, 0]


def _of_mined(
    rows: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | Tensor,
    soft: bool,
    distance: str,
) -> _Found:
    """One triplet of each anchor that has both."""
    counted = (positive >= 0) & (negative >= 0)
    near, far = (rows.index_select(0, i.clamp_min(0)) for i in (positive, negative))
    gap = margin + _distance(rows, near, distance) - _distance(rows, far, distance)
    losses = (F.softplus(gap, threshold=40) if soft else gap.relu()).masked_fill(~counted, 0)
    every = counted.sum()
    return _Found(losses, every if soft else (losses > 0).sum(), every)


def _distance(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """Of matching rows, [B]."""
    if distance == "cosine":
        return 1 - (a * b).sum(1)
    if distance == "squared_euclidean":
        return (a - b).square().sum(1)
    return torch.linalg.vector_norm(a - b, dim=1)  # whose gradient at 0 is 0


def _of_all(
    rows: Tensor,
    labels: Tensor,
    margin: float | Tensor,
    soft: bool,
    distance: str,
    options: dict[str, Any],
) -> _Found:
    """Every positive pair's threshold is a bias, and its negatives a row of a streamed sum."""
    B, D = rows.shape
    classes = _Classes.of(labels)
    every = ((classes.counts - 1) * (B - classes.counts)).sum()
    rows = rows.index_select(0, classes.order)
    losses = rows[:, :0].sum(1)  # zeros, which have a gradient where there is no pair
    active = torch.zeros_like(every)
    scale, key_bias = 1.0, None
    if distance == "squared_euclidean":  # d(a, b) - |a|^2 = -(2 <a, b> - |b|^2)
        scale, key_bias = 2.0, -rows.square().sum(1)
    for anchors, positives in classes.positive_pairs(_FEW // D):
        query = _taken(rows, anchors)
        threshold = margin - scale * _products(query, rows, positives)
        if key_bias is not None:
            threshold = threshold - key_bias[positives]
        different = PairFilter(_taken(classes.labels, anchors), classes.labels, "different")
        biases = {"query_bias": threshold, "key_bias": key_bias}
        if soft:
            sums = row_softplus_sum(query, rows, scale, where=different, **biases, **options)
        else:
            sums, above = row_hinge_sum(query, rows, scale, where=different, **biases, **options)
            active = active + above.sum()
        losses = losses.index_add(0, _taken(classes.order, anchors), sums)
    return _Found(losses, every if soft else active, every)


Anchors = Tensor | slice


class _Classes(NamedTuple):
    """Rows ordered by class, the largest classes first: those that have so many positives are the
    first so many rows, and a slice of these takes no memory.

    Args:
        order: Which rows these are, [B]; the others are in this order.
        labels: Their labels.
        counts: How many rows their classes have.
        place: Which rows of their classes they are.
    """

    order: Tensor
    labels: Tensor
    counts: Tensor
    place: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> _Classes:
        labels, order = labels.sort(stable=True)
        first = torch.searchsorted(labels, labels)
        counts = torch.searchsorted(labels, labels, right=True) - first
        place = torch.arange(len(labels), device=labels.device) - first
        counts, by_count = counts.sort(descending=True, stable=True)
        return cls(order[by_count], labels[by_count], counts, place[by_count])

    def positive_pairs(self, few: int) -> Iterator[tuple[Anchors, Tensor]]:
        """Some anchors, and a positive of each: up to ``few`` pairs at once, or in as many rounds
        as rows have positives. In round r it is the r-th row after the anchor's in its class,
        around the end."""
        index = torch.arange(len(self.counts), device=self.counts.device)
        most = int(self.counts[0]) if len(self.counts) else 0
        rounds = torch.arange(1, max(most, 1), device=self.counts.device)
        sizes = torch.searchsorted(-self.counts, -rounds).tolist()  # rows of larger classes
        visits: list[tuple[Anchors, Any]] = [(slice(n), r) for r, n in enumerate(sizes, 1)]
        if 0 < sum(sizes) <= few:
            anchors = torch.cat([index[:size] for size in sizes])
            shift = torch.cat([rounds[r].expand(size) for r, size in enumerate(sizes)])
            visits = [(anchors, shift)]
        for anchors, shift in visits:
            place, counts = self.place[anchors], self.counts[anchors]
            yield anchors, index[anchors] - place + (place + shift) % counts


def _taken(x: Tensor, at: Anchors) -> Tensor:
    return x[at] if isinstance(at, slice) else x.index_select(0, at)


def _products(query: Tensor, rows: Tensor, positives: Tensor) -> Tensor:
    """``<query[i], rows[positives[i]]>``, [P]; of many it keeps no copy of the positives."""
    if query.numel() <= _FEW:
        return (query * rows.index_select(0, positives)).sum(1)
    indices = positives[:, None]
    with torch.no_grad():
        values = found_products(query, rows, indices)
    return found_scores(query, rows, values, indices, False)[:, 0]
