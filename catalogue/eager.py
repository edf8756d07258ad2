"""The rows x rows losses as people write them in PyTorch, with no copy they could do without.

``info_nce`` is info-nce-pytorch's, ``nt_xent`` the one-matrix form of lightly's, ``clip``
open_clip's. Embeddings are scaled before the product rather than the matrix after it, and
``clip`` transposes its logits instead of multiplying twice, as the original CLIP does: on a CPU
each is at least as fast as the other way of writing it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.pairs import PairFilter, Where, as_filters


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
    reduction: str = "mean",
) -> Tensor:
    z = F.normalize(torch.cat([view_0, view_1]))
    logits = (z / temperature) @ z.T
    logits.fill_diagonal_(-torch.inf)
    positives = torch.arange(len(z), device=z.device).roll(len(view_0))
    logits = masked(logits, where, positives)
    if negative_keys is not None:
        further = (z / temperature) @ F.normalize(negative_keys).T
        logits = torch.cat([logits, further], 1)
    return F.cross_entropy(logits, positives, reduction=reduction)


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    temperature: float | Tensor,
    *,
    negative_keys: Tensor | None = None,
    in_batch_negatives: bool | None = None,
    target: Tensor | None = None,
    where: Where = (),
    reduction: str = "mean",
) -> Tensor:
    query, positive_key = F.normalize(query), F.normalize(positive_key)
    scaled = query / temperature
    labels = torch.arange(len(query), device=query.device) if target is None else target.long()
    if in_batch_negatives or negative_keys is None:
        logits = masked(scaled @ positive_key.T, where, labels)
        where = ()
    else:
        logits = (scaled * positive_key[labels]).sum(1, keepdim=True)
        labels = torch.zeros_like(labels)
    if negative_keys is not None:
        keys = F.normalize(negative_keys, dim=-1)
        own = keys.dim() == 3
        further = torch.einsum("bd,bkd->bk", scaled, keys) if own else scaled @ keys.T
        logits = torch.cat([logits, masked(further, where)], 1)
    return F.cross_entropy(logits, labels, reduction=reduction)


def clip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    labels = torch.arange(len(logits), device=logits.device)
    images = F.cross_entropy(logits, labels, reduction=reduction)
    return (images + F.cross_entropy(logits.T, labels, reduction=reduction)) / 2


def siglip(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    reduction: str = "mean",
) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    if logit_bias is not None:
        logits = logits + logit_bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    losses = -F.logsigmoid(signs * logits)
    return losses.sum(1) if reduction == "none" else losses.sum() / len(logits)


def row_logsumexp(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return ((scale * query) @ key.T).logsumexp(1)


def row_col_logsumexp(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits = (scale * query) @ key.T
    return logits.logsumexp(1), logits.logsumexp(0)


def self_logsumexp(x: Tensor, scale: float) -> Tensor:
    return ((scale * x) @ x.T).logsumexp(1)


def row_softplus_sum(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return F.softplus((scale * query) @ key.T).sum(1)


def row_col_softplus_sum(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    terms = F.softplus((scale * query) @ key.T)
    return terms.sum(1), terms.sum(0)


def self_softplus_sum(x: Tensor, scale: float) -> Tensor:
    return row_softplus_sum(x, x, scale)


def row_hinge_sum(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    terms = F.relu((scale * query) @ key.T)
    return terms.sum(1), terms.count_nonzero(1)


def row_col_hinge_sum(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, ...]:
    terms = F.relu((scale * query) @ key.T)
    return terms.sum(1), terms.count_nonzero(1), terms.sum(0), terms.count_nonzero(0)


def self_hinge_sum(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return row_hinge_sum(x, x, scale)
