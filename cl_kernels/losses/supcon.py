"""Supervised contrastive learning."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels.calls import default_compute_dtype
from cl_kernels.checks import as_alike, as_scalar, check_embeddings
from cl_kernels.losses.common import Reduction, check_reduction, inverse, logit_bound
from cl_kernels.losses.labels import (
    Positives,
    as_labels,
    of_same_label,
    of_same_label_but_itself,
    total_of,
)
from cl_kernels.losses.module import LossModule
from cl_kernels.pairs import PairFilter, count_same
from cl_kernels.statistics.functions import row_logsumexp, self_logsumexp
from cl_kernels.statistics.rows import float_rows


def supcon(
    x: Tensor,
    labels: Tensor | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    base_temperature: float | None = None,
    positives: Literal["outside", "inside"] = "outside",
    in_batch: bool | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    backend: str | None = None,
) -> Tensor:
    """Every row of the same label is a positive; all other rows are in the denominator.

    Khosla et al., "Supervised Contrastive Learning" (2020), equation 2 (``positives="outside"``:
    the mean over an anchor's positives of each one's cross-entropy) or 3 (``"inside"``: the
    cross-entropy of their mean probability). Positives are sums over classes: O(N D).

    Args:
        x: Embeddings, shape [B, D]; or [B, V, D], V views of each image, which share its label.
            float32, float16, bfloat16 or float64.
        labels: Integer labels, shape [B]. Default, for V views: every image is a class (SimCLR).
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
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] ([B * V]) for ``reduction="none"``, 0 for anchors without a
        positive; float32 (float64 for float64 inputs). The mean over no anchor is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = supcon(projections, labels, temperature=0.1)
    """
    x, labels = _anchors(x, labels)
    if (keys is None) != (key_labels is None):
        given, missing = ("keys", "key_labels") if keys is not None else ("key_labels", "keys")
        raise ValueError(f"{missing}: expected together with {given}, got None")
    if keys is not None and key_labels is not None:
        check_embeddings("keys", keys)
        x, keys = as_alike(x=x, keys=keys)
        key_labels = as_labels("key_labels", key_labels, keys, "keys")
    if positives not in ("outside", "inside"):
        raise ValueError(f'positives: expected "outside" or "inside", got {positives!r}')
    check_reduction(reduction)
    in_batch = keys is None if in_batch is None else in_batch
    check_flag("in_batch", in_batch)
    if not in_batch and keys is None:
        raise ValueError("in_batch: expected True without keys, got False")

    scale = inverse(temperature, x)
    options = {
        "compute_dtype": default_compute_dtype(x),
        "logit_bound": logit_bound(normalize, temperature=temperature),
        "backend": backend,
    }
    anchors = float_rows(x, normalize=normalize)
    sets: list[_OfBatch | _OfKeys] = [_OfBatch(anchors, labels)] if in_batch else []
    if keys is not None and key_labels is not None:
        sets.append(_OfKeys(anchors, labels, float_rows(keys, normalize=normalize), key_labels))
    lse = reduce(torch.logaddexp, [s.logsumexp(scale, (), options) for s in sets])
    if positives == "outside":
        found = reduce(Positives.and_more, [s.positives() for s in sets])
        count, of_positives = found.counts, scale * found.mean_similarity(anchors)
    else:
        count = reduce(torch.add, [s.count() for s in sets])
        same = [s.logsumexp(scale, (s.same(),), options) for s in sets]
        of_positives = reduce(torch.logaddexp, same) - count.clamp_min(1).to(lse.dtype).log()
    counted = count > 0
    # An anchor without a positive may be alone: its log-sum-exps are -inf.
    losses = torch.where(counted, lse, 0) - torch.where(counted, of_positives, 0)
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


def _anchors(x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows [B V, D] and their labels."""
    views = x.shape[1] if isinstance(x, Tensor) and x.dim() == 3 else None
    if labels is None:
        if views is None:
            raise ValueError("labels: expected with x of shape [B, D], got None")
        labels = torch.arange(x.shape[0], device=x.device)
    labels = as_labels("labels", labels, x, "x") if isinstance(x, Tensor) else labels
    if views is not None:
        x, labels = x.flatten(0, 1), labels.repeat_interleave(views)
    check_embeddings("x", x)
    return x, labels


class _OfBatch:
    """The anchors themselves, each without itself."""

    def __init__(self, anchors: Tensor, labels: Tensor) -> None:
        self.anchors, self.labels = anchors, labels
        index = torch.arange(len(anchors), device=anchors.device)
        self.not_itself = PairFilter(index, index, "different")

    def same(self) -> PairFilter:
        return PairFilter(self.labels, self.labels, "same")

    def logsumexp(self, scale, where, options) -> Tensor:
        return self_logsumexp(self.anchors, scale, where=(self.not_itself, *where), **options)

    def positives(self) -> Positives:
        return of_same_label_but_itself(self.anchors, self.labels)

    def count(self) -> Tensor:
        return count_same(self.labels, self.labels) - 1


class _OfKeys:
    """Further rows."""

    def __init__(self, anchors: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor) -> None:
        self.anchors, self.labels, self.keys, self.key_labels = anchors, labels, keys, key_labels

    def same(self) -> PairFilter:
        return PairFilter(self.labels, self.key_labels, "same")

    def logsumexp(self, scale, where, options) -> Tensor:
        return row_logsumexp(self.anchors, self.keys, scale, where=where, **options)

    def positives(self) -> Positives:
        return of_same_label(self.labels, self.keys, self.key_labels)

    def count(self) -> Tensor:
        return count_same(self.labels, self.key_labels)
