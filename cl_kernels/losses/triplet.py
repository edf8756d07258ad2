"""Triplet losses of labelled rows: of all triplets, or of those that are mined."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._dispatch import requested
from cl_kernels._numbers import check_flag
from cl_kernels.checks import as_scalar
from cl_kernels.losses.all_triplets import AllTriplets, all_triplets
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import Reduction, check_choice, check_reduction, in_full
from cl_kernels.losses.labels import labels_of, other_label, same_label
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.one_step import Embeddings, Pull, one_step
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.triplets_in_a_ring import triplets_in_a_ring
from cl_kernels.ranks.group import Group
from cl_kernels.reading import readable
from cl_kernels.statistics.rows import float_rows

_FEW = 1 << 14  # similarities that may be held


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
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """``max(0, margin + d(a, p) - d(a, n))`` for anchors a, positives p and negatives n of a batch.

    Positives are the other rows of the anchor's label, negatives the rows of other labels. Hermans
    et al., "In Defense of the Triplet Loss for Person Re-Identification" (2017): all triplets
    (equation 6) or each anchor's farthest positive with its nearest negative (equation 5); or, as
    in Schroff et al., "FaceNet" (2015), with its nearest negative that is farther than the
    positive. An anchor that lacks either is left out.

    Of classes of K rows all triplets are B * (K - 1) * (B - K), made of similarities that are
    multiplied once, some rows at a time. It is meant for small classes.

    Args:
        x: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        labels: Integer labels, shape [B].
        margin: A number, or a 0-d tensor that may require grad.
        mining: Which triplets: see above.
        soft: softplus in place of the hinge. (The paper's soft margin has ``margin=0``.)
        distance: ``"cosine"`` is ``1 - <a, b>``, of whatever rows; ``"squared_euclidean"``; or
            ``"euclidean"``, whose gradient at 0 is taken to be 0.
        average: The mean is over the triplets whose loss is above 0, or over all that there are.
            A soft loss is always above 0.
        normalize: Divide rows by their length first.
        reduction: ``"mean"`` or ``"sum"`` over triplets, or ``"none"``.
        backend: Which backend serves the searches of mined triplets.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Returns:
        A 0-d tensor, or for ``reduction="none"`` shape [B], the sum over each anchor's triplets;
        float32 (float64 for float64 inputs). The mean over no triplet is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = triplet(embeddings, labels, mining="batch_hard", average="all")
    """
    if over_several(gather, group):
        return over_ranks(triplet, locals())
    labels = labels_of(x, labels)
    margin = as_scalar("margin", margin, x)
    check_choice("mining", mining, ("batch_all", "batch_hard", "semi_hard"))
    check_flag("soft", soft)
    check_choice("distance", distance, ("cosine", "squared_euclidean", "euclidean"))
    check_choice("average", average, ("active", "all"))
    check_reduction(reduction)
    if readable(x) and not (math.isfinite(x.detach().sum().item()) or bool(x.isfinite().all())):
        raise ValueError("x: expected finite embeddings, got others")
    if mining == "batch_all":
        requested(backend)  # checked; no search is made
        given = labels, soft, distance, average, reduction
        reduction = "none" if reduction == "none" else "sum"
        return _of_all((x,), (margin,), given, normalize, reduction)
    rows = float_rows(x, normalize=normalize)
    settings = {"normalize": normalize, "backend": backend}
    given = x.detach(), rows.detach(), labels
    positive, negative = mined_triplets(*given, mining, distance, settings)
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


def comparable(rows: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """Queries and keys whose inner products fall as the distances of the rows rise."""
    if distance == "cosine":
        return rows, rows
    half = rows.square().sum(1, keepdim=True) / 2  # <a, b> - |b|^2 / 2: one more column
    return torch.cat((rows, torch.ones_like(half)), 1), torch.cat((rows, -half), 1)


def mined_triplets(
    x: Tensor, rows: Tensor, labels: Tensor, mining: str, distance: str, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Each anchor's positive and negative, [B]; -1 for none. ``rows`` are those of x of which
    distances are taken."""
    B = x.shape[0]
    plain = requested(settings.get("backend")) is None and not the_batch().parted
    if plain and isinstance(B, int) and 0 < B * B <= _FEW:
        return _of_a_matrix(rows, labels, mining, distance)
    query = key = x
    if distance != "cosine" and not settings["normalize"]:
        query, key = comparable(float_rows(x, normalize=False), distance)
    batch = the_batch()
    positive = batch.topk(query, key, 1, where=same_label(labels), largest=False, **settings)
    below = None
    if mining == "semi_hard":
        below = positive.values[:, 0].masked_fill(positive.indices[:, 0] < 0, -torch.inf)
    negative = batch.topk(query, key, 1, where=other_label(labels), below=below, **settings)
    return positive.indices[:, 0], negative.indices[:, 0]


def _of_a_matrix(rows: Tensor, labels: Tensor, mining: str, distance: str) -> tuple[Tensor, Tensor]:
    """Of a small batch, which two searches would take longer to ask for."""
    query, key = comparable(rows, distance)
    scores, same = in_full(query, key.T), labels[:, None] == labels
    positives = same.clone().fill_diagonal_(False)
    near, positive = scores.masked_fill(~positives, torch.inf).min(1)
    if mining == "semi_hard":
        same = same | (scores >= near[:, None])
    far, negative = scores.masked_fill(same, -torch.inf).max(1)
    return positive.masked_fill(near == torch.inf, -1), negative.masked_fill(far == -torch.inf, -1)


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
    batch = the_batch()
    near, far = (batch.rows_at(rows, i.clamp_min(0)) for i in (positive, negative))
    gap = margin + distance_of(rows, near, distance) - distance_of(rows, far, distance)
    losses = (F.softplus(gap, threshold=40) if soft else gap.relu()).masked_fill(~counted, 0)
    every = batch.sum(counted.sum())
    return _Found(losses, every if soft else batch.sum((losses > 0).sum()), every)


def distance_of(a: Tensor, b: Tensor, distance: str) -> Tensor:
    """Of matching rows, [B]."""
    if distance == "cosine":
        return 1 - (a * b).sum(1)
    if distance == "squared_euclidean":
        return (a - b).square().sum(1)
    return torch.linalg.vector_norm(a - b, dim=1)  # whose gradient at 0 is 0


@one_step
def _of_all(
    x: Embeddings,
    margin: Tensor,
    labels: Tensor,
    soft: bool,
    distance: str,
    average: str,
    reduction: str,
) -> tuple[Tensor, Pull]:
    """Each anchor's loss, or its part of the total."""
    batch, made_at_once = the_batch(), x.trained and reduction != "none"

    def evaluated(grad: Tensor | None, needed: bool) -> AllTriplets:
        kind = {"soft": soft, "distance": distance, "needed": needed}
        if batch.ranks is not None:
            return triplets_in_a_ring(x.rows, labels, margin, grad, batch=batch, **kind)
        return all_triplets(x.rows, labels, margin, grad, **kind)

    found = evaluated(None, made_at_once)
    one = torch.ones_like(margin)
    count = batch.sum(found.every if soft or average == "all" else found.active)
    share = one / count.clamp_min(1) if reduction == "mean" else one

    def pull(grad: Tensor | None) -> tuple[Tensor]:
        made = found if made_at_once else evaluated(grad, True)
        x.add(share * made.grad_rows)
        return (share * made.grad_margin,)

    return found.losses * share, pull
