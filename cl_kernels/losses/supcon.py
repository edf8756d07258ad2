"""Supervised contrastive learning."""

from __future__ import annotations

from functools import reduce
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_alike, as_scalar, check_embeddings
from cl_kernels.csr import CSR, Lists, as_csr
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import (
    Reduction,
    check_choice,
    check_reduction,
    inverse,
    logit_bound,
    union,
)
from cl_kernels.losses.labels import (
    SameLabel,
    as_labels,
    listed_similarity,
    same_label_similarity,
    segment_logsumexp,
    total_of,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.losses.one_step import Embeddings, Pull, Streamed, one_step, times
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.visits import Visit, visit
from cl_kernels.pairs import PairFilter, count_same
from cl_kernels.ranks.group import Group
from cl_kernels.statistics.functions import row_logsumexp, self_logsumexp
from cl_kernels.statistics.rows import float_rows


def supcon(
    x: Tensor,
    labels: Tensor | Lists | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    base_temperature: float | None = None,
    positives: Literal["outside", "inside"] = "outside",
    in_batch: bool | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Every row of the same label is a positive; all other rows are in the denominator.

    Khosla et al., "Supervised Contrastive Learning" (2020), equation 2 (``positives="outside"``:
    the mean over an anchor's positives of each one's cross-entropy) or 3 (``"inside"``: the
    cross-entropy of their mean probability). Positives are sums over classes: O(N D).

    Args:
        x: Embeddings, shape [B, D]; or [B, V, D], V views of each image, which share its label.
            float32, float16, bfloat16 or float64.
        labels: Integer labels, shape [B]; or lists of each anchor's positives among what it is
            compared with, the rows of x or ``keys``: a ``CSR``, [B, P] padded with -1 (P at least
            2), or Python lists. Default, for V views: every image is a class (SimCLR).
        keys: Rows to compare with, shape [N, D], e.g. a reference set or a queue.
        key_labels: Their labels, shape [N].
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        base_temperature: The loss is multiplied by ``temperature / base_temperature``. Default:
            it is not.
        positives: Whether the mean over positives is outside of the logarithm or inside.
        in_batch: Whether the rows of x (but the anchor itself) are compared with too. Default:
            only without ``keys``.
        normalize: Divide rows by their length first (cosine similarity).
        reduction: ``"mean"`` or ``"sum"`` over the anchors that have a positive, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] ([B * V]) for ``reduction="none"``, 0 for anchors without a
        positive; float32 (float64 for float64 inputs). The mean over no anchor is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = supcon(projections, labels, temperature=0.1)
    """
    if over_several(gather, group):
        return over_ranks(supcon, locals())
    x, labels = _with_labels(x, labels)
    if keys is not None:
        check_embeddings("keys", keys)
        x, keys = as_alike(x=x, keys=keys)
    check_choice("positives", positives, ("outside", "inside"))
    check_reduction(reduction)
    in_batch = keys is None if in_batch is None else in_batch
    check_flag("in_batch", in_batch)
    if not in_batch and keys is None:
        raise ValueError("in_batch: expected True without keys, got False")

    scale = inverse(temperature, x)
    options: dict[str, Any] = {
        "logit_bound": logit_bound(normalize, temperature=temperature),
        "backend": backend,
    }
    of_labels = isinstance(labels, Tensor) and labels.dim() == 1
    plain = (
        of_labels
        and keys is key_labels is None
        and positives == "outside"
        and base_temperature is None
    )
    if plain:
        index = the_batch().positions(x.shape[0], x.device)
        others = visit("self_logsumexp", x, None, PairFilter(index, index, "different"), **options)
        given = labels, others, reduction == "mean"
        reduction = "none" if reduction == "none" else "sum"
        return _of_labels((x,), (scale,), given, normalize, reduction)
    options["compute_dtype"] = default_compute_dtype(x)
    sets = _compared(x, labels, keys, key_labels, in_batch, normalize)
    lse = union([s.logsumexp(scale, options) for s in sets])
    count = reduce(torch.add, [s.positives.counts() for s in sets])
    if positives == "outside":
        similarity = reduce(torch.add, [s.positives.similarity(s) for s in sets])
        of_positives = scale * similarity / count.clamp_min(1)
    else:
        listed = [s.positives.logsumexp(s, scale, options) for s in sets]
        of_positives = union(listed) - count.clamp_min(1).to(lse.dtype).log()
    counted = count > 0
    # An anchor without a positive may be alone: its log-sum-exps are -inf.
    losses = lse - (
        of_positives if positives == "outside" else torch.where(counted, of_positives, 0)
    )
    if base_temperature is not None:
        base = as_scalar("base_temperature", base_temperature, x, inverted=True)
        losses = losses * (base / scale)
    return total_of(losses, counted, reduction)


class SupConLoss(LossModule):
    """``supcon`` as a module: ``loss(x, labels=None, keys=None, key_labels=None)``.

    Settings are the function's other arguments; a temperature may be an ``nn.Parameter`` (0-d),
    which is learned.
    """

    function = supcon
    inputs = "x", "labels", "keys", "key_labels"


@one_step
def _of_labels(
    x: Embeddings, scale: Tensor, labels: Tensor, others: Visit, averaged: bool
) -> tuple[Tensor, Pull]:
    """The losses of anchors that have a positive, 0 of others; ``averaged``: parts of their mean.

    Positives are the other rows of a label."""
    batch, lse = the_batch(), Streamed(others, x, scale=scale)
    same = SameLabel.of(labels, None, x.rows)
    sums, counts = same.sums(x.rows), same.counts()
    share = counts.clamp_max(1).to(lse.value.dtype)  # of each anchor's loss in the result
    share = share / batch.sum(share.sum()).clamp_min_(1) if averaged else share
    each = share / counts.clamp_min(1)  # of each positive's similarity
    similarity = (x.rows * sums).sum(1)
    # The log-sum-exp of an anchor that is alone, whose share is 0, is -inf.
    losses = share * lse.value.clamp_min(torch.finfo(share.dtype).min)
    losses = losses.addcmul_(scale, each * similarity, value=-1)

    def pull(grad: Tensor | None) -> tuple[Tensor]:
        by_each = times(grad, each)
        of_scale = lse.pull(times(grad, share)) - torch.dot(by_each, similarity)
        weight = -scale * by_each
        x.add_weighted(weight, sums)
        x.add(same.back(weight[:, None] * x.rows))
        return (of_scale,)

    return losses, pull


class _SameLabel(NamedTuple):
    """Positives by labels of the anchors and of the keys; ``itself``: the anchors are the keys."""

    labels: Tensor
    key_labels: Tensor
    itself: bool

    def similarity(self, compared: _Compared) -> Tensor:
        if self.itself:
            return same_label_similarity(compared.anchors, self.labels)
        return same_label_similarity(compared.anchors, self.labels, compared.keys, self.key_labels)

    def counts(self) -> Tensor:
        if self.itself:
            return count_same(self.labels, the_batch().everyone(self.labels)) - 1
        return count_same(self.labels, self.key_labels)

    def logsumexp(self, compared: _Compared, scale, options) -> Tensor:
        same = PairFilter(self.labels, self.key_labels, "same")
        return compared.logsumexp(scale, options, (same,))


class _Listed(NamedTuple):
    """Positives by lists of keys."""

    lists: CSR

    def similarity(self, compared: _Compared) -> Tensor:
        return listed_similarity(compared.anchors, compared.keys, self.lists)

    def counts(self) -> Tensor:
        return self.lists.counts()

    def logsumexp(self, compared: _Compared, scale, options) -> Tensor:
        rows = self.lists.rows()
        anchors = compared.anchors.index_select(0, rows)
        keys = compared.keys.index_select(0, self.lists.keys)
        logits = scale * (anchors * keys).sum(1)
        return segment_logsumexp(logits, rows, len(compared.anchors))


class _Compared(NamedTuple):
    """Anchors and what they are compared with: a set of keys, or one another."""

    anchors: Tensor
    keys: Tensor
    positives: _SameLabel | _Listed
    itself: bool

    def logsumexp(self, scale, options, where: tuple[PairFilter, ...] = ()) -> Tensor:
        batch = the_batch()
        if not self.itself:
            with batch.everybodys():
                return row_logsumexp(self.anchors, self.keys, scale, where=where, **options)
        index = batch.positions(len(self.anchors), self.anchors.device)
        where = PairFilter(index, index, "different"), *where
        return self_logsumexp(self.anchors, scale, where=where, **options)


def _with_labels(x: Tensor, labels: Tensor | Lists | None) -> tuple[Tensor, Tensor | Lists]:
    """Rows [B V, D] and their labels, or lists."""
    views = x.shape[1] if isinstance(x, Tensor) and x.dim() == 3 else None
    check_embeddings("x", x if views is None else x.flatten(0, 1))
    if labels is None:
        if views is None:
            raise ValueError("labels: expected them for x of shape [B, D], got None")
        labels = the_batch().numbers(x.shape[0], x.device)
    rows = x if views is None else x.flatten(0, 1)
    if isinstance(labels, Tensor) and labels.dim() == 2 and labels.shape[1] == 1:
        raise ValueError(  # read as lists it would be another loss
            f"labels: expected labels [B], or lists of positives, got shape {list(labels.shape)}: "
            "a column of labels is labels.squeeze(1), lists of one positive are a CSR"
        )
    if isinstance(labels, list) and labels and not isinstance(labels[0], (list, tuple, Tensor)):
        raise TypeError("labels: expected a tensor of labels, or a list of lists, got a flat list")
    if not (isinstance(labels, Tensor) and labels.dim() == 1):
        return rows, labels
    labels = as_labels("labels", labels, x, "x")
    return rows, labels if views is None else labels.repeat_interleave(views)


def _compared(
    x: Tensor, labels: Tensor | Lists, keys: Tensor | None, key_labels, in_batch: bool, normalize
) -> list[_Compared]:
    by_labels = isinstance(labels, Tensor) and labels.dim() == 1
    if not by_labels and in_batch and keys is not None:
        raise ValueError("labels: expected labels where rows and keys are compared with, got lists")
    if (keys is not None and by_labels) != (key_labels is not None):
        names = ("key_labels", "keys") if key_labels is None else ("keys", "key_labels")
        raise ValueError(f"{names[0]}: expected together with {names[1]} and labels, got another")
    anchors, sets = float_rows(x, normalize=normalize), []

    def related(others: Tensor, other_labels, itself: bool) -> _Compared:
        positives = _SameLabel(cast(Tensor, labels), other_labels, itself) if by_labels else None
        if positives is None:
            size = len(anchors), len(others)
            positives = _Listed(as_csr("labels", cast(Lists, labels), *size, x.device))
            if itself and bool((positives.lists.rows() == positives.lists.keys).any()):
                raise ValueError("labels: expected lists of other rows, got one that names its own")
        return _Compared(anchors, others, positives, itself)

    if in_batch:
        sets.append(related(anchors, labels, True))
    if keys is not None:
        if key_labels is not None:
            key_labels = as_labels("key_labels", key_labels, keys, "keys")
        sets.append(related(float_rows(keys, normalize=normalize), key_labels, False))
    return sets
