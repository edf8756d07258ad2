"""The rows x rows losses as people write them in PyTorch, with no copy they could do without.

``info_nce`` is info-nce-pytorch's, ``nt_xent`` the one-matrix form of lightly's, ``clip``
open_clip's. Embeddings are scaled before the product rather than the matrix after it, and
``clip`` transposes its logits instead of multiplying twice, as the original CLIP does: on a CPU
each is at least as fast as the other way of writing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from catalogue import textbook
from catalogue.folds import FOLDS, FoldCase
from cl_kernels.pairs import PairFilter, Where, as_filters
from cl_kernels.statistics.table import SIDES


def dropped(f: PairFilter) -> Tensor:
    same = f.query_ids[:, None] == f.key_ids
    return same if f.keep == "different" else ~same


def masked(logits: Tensor, where: Where, positives: Tensor | None = None) -> Tensor:
    """-inf for what filters drop, but not for each row's positive."""
    for f in as_filters(where):
        drop = dropped(f)
        if positives is not None:
            drop[torch.arange(len(drop), device=drop.device), positives] = False
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def nt_xent(
    view_0: Tensor,
    view_1: Tensor,
    temperature: float | Tensor,
    *,
    negative_keys: Tensor | None = None,
    where: Where = (),
    negative_where: Where = (),
    reduction: str = "mean",
) -> Tensor:
    z = F.normalize(torch.cat([view_0, view_1]))
    logits = (z / temperature) @ z.T
    logits.fill_diagonal_(-torch.inf)
    positives = torch.arange(len(z), device=z.device).roll(len(view_0))
    logits = masked(logits, where, positives)
    if negative_keys is not None:
        further = (z / temperature) @ F.normalize(negative_keys).T
        logits = torch.cat([logits, masked(further, negative_where)], 1)
    return F.cross_entropy(logits, positives, reduction=reduction)


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    temperature: float | Tensor,
    *,
    negative_keys: Tensor | None = None,
    in_batch_negatives: bool | None = None,
    target: Tensor | None = None,
    positives: str = "outside",
    where: Where = (),
    negative_where: Where = (),
    key_bias: Tensor | None = None,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    if target is not None and target.dim() == 2:  # there is no short way to write these
        options = {"target": target, "where": where, "negative_where": negative_where}
        options |= {"key_bias": key_bias, "weights": weights, "positives": positives}
        options |= {"in_batch_negatives": in_batch_negatives, "reduction": reduction}
        return textbook.info_nce(
            query, positive_key, negative_keys, temperature=temperature, **options
        )
    query, positive_key = F.normalize(query), F.normalize(positive_key)
    scaled = query / temperature
    labels = torch.arange(len(query), device=query.device) if target is None else target.long()
    if in_batch_negatives or negative_keys is None:
        logits = scaled @ positive_key.T
        logits = masked(logits if key_bias is None else logits + key_bias, where, labels)
        where = negative_where
    else:
        logits = (scaled * positive_key[labels]).sum(1, keepdim=True)
        labels = torch.zeros_like(labels)
    if negative_keys is not None:
        keys = F.normalize(negative_keys, dim=-1)
        own = keys.dim() == 3
        further = torch.einsum("bd,bkd->bk", scaled, keys) if own else scaled @ keys.T
        logits = torch.cat([logits, masked(further, where)], 1)
    return _weighted(logits, labels, weights, label_smoothing, reduction)


def _weighted(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    if weights is None:
        options = {"label_smoothing": label_smoothing, "reduction": reduction}
        return F.cross_entropy(logits, labels, **options)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return textbook.weighted(losses, weights, reduction)


def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    target: Tensor | None = None,
    where: Where = (),
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    images = torch.arange(len(logits), device=logits.device)
    labels = images if target is None else target.long()
    logits = masked(logits, where, labels)
    of_texts = logits.T
    if target is not None:
        shared = (labels[:, None] == labels).fill_diagonal_(False)
        of_texts = of_texts[labels].masked_fill(shared, -torch.inf)
    settings = weights, label_smoothing, reduction
    of_images = _weighted(logits, labels, *settings)
    return (of_images + _weighted(of_texts, images, *settings)) / 2


def siglip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    same = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
    if ids is not None:
        same = (ids[:, None] == ids).to(logits.dtype)
    signs = 2 * same - 1
    losses = -F.logsigmoid(signs * logits)
    return losses.sum(1) if reduction == "none" else losses.sum() / len(logits)


def statistic(sides: str, fold: FoldCase) -> Callable[..., Any]:
    """Of ``(query, key, scale)``, or of ``(x, scale)`` for "self"."""

    def function(*arguments: Any) -> Tensor | tuple[Tensor, ...]:
        *rows, scale = arguments
        terms = fold.terms((scale * rows[0]) @ rows[-1].T)
        dims = (1, 0) if sides == "row_col" else (1,)
        values = [value for dim in dims for value in fold.eager(terms, dim)]
        return values[0] if len(values) == 1 else tuple(values)

    return function


STATISTICS = {
    f"{sides}_{name}": statistic(sides, fold) for name, fold in FOLDS.items() for sides in SIDES
}
