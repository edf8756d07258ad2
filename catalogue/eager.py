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


def nt_xent(view_0: Tensor, view_1: Tensor, temperature: float) -> Tensor:
    z = F.normalize(torch.cat([view_0, view_1]))
    logits = (z / temperature) @ z.T
    logits.fill_diagonal_(-torch.inf)
    positives = torch.arange(len(z), device=z.device).roll(len(view_0))
    return F.cross_entropy(logits, positives)


def info_nce(query: Tensor, positive_key: Tensor, temperature: float) -> Tensor:
    query, positive_key = F.normalize(query), F.normalize(positive_key)
    logits = (query / temperature) @ positive_key.T
    return F.cross_entropy(logits, torch.arange(len(query), device=query.device))


def clip(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def siglip(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    logits = logit_scale * image_features @ text_features.T
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


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
