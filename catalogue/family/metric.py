"""Losses of deep metric learning, and their textbook forms."""

from __future__ import annotations

import torch
from torch import Tensor

import cl_kernels
from catalogue.family.case import FamilyCase, plain
from catalogue.family.labels import labelled
from catalogue.textbook import rows


def _masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """[B, B]: the positives and the negatives of each row."""
    same = labels[:, None] == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else getattr(losses, reduction)()


def _log_one_plus_sum(exponents: Tensor, kept: Tensor, dim: int) -> Tensor:
    """``log(1 + sum exp)`` over the kept of a dimension."""
    zero = torch.zeros_like(exponents.narrow(dim, 0, 1))
    return torch.cat([exponents.masked_fill(~kept, -torch.inf), zero], dim).logsumexp(dim)


def multi_similarity(
    x,
    labels,
    *,
    alpha=2.0,
    beta=50.0,
    base=0.5,
    mining_margin=None,
    normalize=True,
    reduction="mean",
):
    x = rows(x, normalize)
    similarity = x @ x.T
    positive, negative = _masks(labels)
    if mining_margin is not None:
        least = similarity.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        most = similarity.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        positive = positive & (similarity < most + mining_margin)
        negative = negative & (similarity > least - mining_margin)
    of_positives = _log_one_plus_sum(-alpha * (similarity - base), positive, 1) / alpha
    of_negatives = _log_one_plus_sum(beta * (similarity - base), negative, 1) / beta
    return _reduced(of_positives + of_negatives, reduction)


CASES = (
    FamilyCase(
        ours=cl_kernels.multi_similarity,
        module=cl_kernels.MultiSimilarityLoss,
        textbook=multi_similarity,
        inputs=labelled,
        options={
            "plain": plain,
            "mined": lambda B, D: {"mining_margin": 0.1},
            "other scales": lambda B, D: {"alpha": 3.0, "beta": 20.0},
            "learned base": lambda B, D: {"base": torch.tensor(0.4)},
            "as they come": lambda B, D: {"normalize": False, "alpha": 0.1, "beta": 0.2},
            "mined as they come": lambda B, D: {
                "normalize": False,
                "alpha": 0.1,
                "beta": 0.2,
                "mining_margin": 2.0,
            },
        },
        title="Multi-similarity: soft maxima of positives and negatives, with or without mining",
        paper="Wang et al., Multi-Similarity Loss with General Pair Weighting for Deep Metric "
        "Learning (2019), equation 15",
    ),
)
