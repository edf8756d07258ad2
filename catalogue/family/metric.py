"""Losses of deep metric learning, and their textbook forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from catalogue.family.case import Arguments, FamilyCase, plain
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


def _distances(x: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        return 1 - x @ x.T
    squares = (x[:, None] - x).square().sum(2)
    return squares if distance == "squared_euclidean" else squares.clamp_min(1e-12).sqrt()


def triplet(
    x,
    labels,
    *,
    margin=0.2,
    mining="batch_all",
    soft=False,
    distance="cosine",
    average="active",
    normalize=True,
    reduction="mean",
):
    d = _distances(rows(x, normalize), distance)
    positive, negative = _masks(labels)
    kept = positive[:, :, None] & negative[:, None, :]  # [anchor, positive, negative]
    if mining != "batch_all":
        farthest = d.masked_fill(~positive, -torch.inf).amax(1, keepdim=True)
        if mining == "semi_hard":
            negative = negative & (d > farthest)
        nearest = d.masked_fill(~negative, torch.inf).amin(1, keepdim=True)
        positive = positive & (d == farthest)
        negative = negative & (d == nearest)
        kept = positive[:, :, None] & negative[:, None, :]
    gap = margin + d[:, :, None] - d[:, None, :]
    losses = torch.where(kept, F.softplus(gap) if soft else gap.relu(), 0)
    if reduction == "none":
        return losses.sum((1, 2))
    count = (losses > 0).sum() if average == "active" else kept.sum()
    return losses.sum() / (count.clamp_min(1) if reduction == "mean" else 1)


def triplet_of_pairs(x, labels):
    """All triplets as people write it: the differences of positive pairs only."""
    d = 1 - F.normalize(x) @ F.normalize(x).T
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    anchors, positives = positive.nonzero(as_tuple=True)
    losses = (0.2 + d[anchors, positives][:, None] - d[anchors]).relu() * ~same[anchors]
    return losses.sum() / (losses > 0).sum().clamp_min(1)


def crowded(B: int, D: int) -> Arguments:
    """Labelled rows that have a direction in common, so that negatives are far above their margin:
    the mean over pairs above a margin jumps where rounding takes one across."""
    arguments = labelled(B, D)
    return arguments | {"x": arguments["x"] + 3}


def pairwise_contrastive(
    x, labels, *, positive_margin=1.0, negative_margin=0.5, normalize=True
) -> Tensor:
    x = rows(x, normalize)
    similarity = x @ x.T
    positive, negative = _masks(labels)
    of_positives = (positive_margin - similarity)[positive].relu()
    of_negatives = (similarity - negative_margin)[negative].relu()
    means = [each.sum() / (each > 0).sum().clamp_min(1) for each in (of_positives, of_negatives)]
    return means[0] + means[1]


def mega_batch_margin(
    anchors,
    positives,
    *,
    positive_margin=0.8,
    negative_margin=0.3,
    normalize=True,
    reduction="mean",
):
    similarity = rows(anchors, normalize) @ rows(positives, normalize).T
    me = torch.eye(len(similarity), dtype=torch.bool)
    hardest = similarity.masked_fill(me, -torch.inf).amax(1)
    losses = (positive_margin - similarity.diagonal()).relu() + (hardest - negative_margin).relu()
    return _reduced(losses, reduction)


def paired(B: int, D: int) -> Arguments:
    anchors = torch.randn(B, D)
    return {"anchors": anchors, "positives": anchors + 0.7 * torch.randn(B, D)}


def proxy_anchor(x, labels, proxies, *, alpha=32.0, margin=0.1, normalize=True):
    similarity = rows(x, normalize) @ rows(proxies, normalize).T
    positive = labels[:, None] == torch.arange(len(proxies))
    of_positives = _log_one_plus_sum(-alpha * (similarity - margin), positive, 0)
    of_negatives = _log_one_plus_sum(alpha * (similarity + margin), ~positive, 0)
    return of_positives[positive.any(0)].mean() + of_negatives.mean()


def of_classes(B: int, D: int) -> Arguments:
    """Rows around their proxies; the first three classes have none."""
    proxies = torch.randn(B // 4 + 3, D)
    labels = 3 + torch.arange(B) % (B // 4)
    return {"x": proxies[labels] + torch.randn(B, D), "labels": labels, "proxies": proxies}


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
    FamilyCase(
        ours=cl_kernels.triplet,
        module=cl_kernels.TripletLoss,
        textbook=triplet,
        inputs=labelled,
        options={
            "plain": plain,
            "all": lambda B, D: {"average": "all", "margin": 0.5},
            "soft": lambda B, D: {"soft": True, "margin": 0.0},
            "learned margin": lambda B, D: {"margin": torch.tensor(0.3)},
            "squared": lambda B, D: {"distance": "squared_euclidean"},
            "squared, as they come": lambda B, D: {
                "distance": "squared_euclidean",
                "normalize": False,
                "margin": 5.0,
            },
            "euclidean": lambda B, D: {"distance": "euclidean"},
            "euclidean, as they come": lambda B, D: {
                "distance": "euclidean",
                "normalize": False,
                "margin": 2.0,
                "soft": True,
            },
            "hard": lambda B, D: {"mining": "batch_hard", "average": "all"},
            "hard, soft": lambda B, D: {"mining": "batch_hard", "soft": True, "margin": 0.0},
            "hard, euclidean, as they come": lambda B, D: {
                "mining": "batch_hard",
                "distance": "euclidean",
                "normalize": False,
                "margin": 1.0,
            },
            "semi-hard": lambda B, D: {"mining": "semi_hard"},
            "semi-hard, squared, as they come": lambda B, D: {
                "mining": "semi_hard",
                "distance": "squared_euclidean",
                "normalize": False,
                "margin": 5.0,
            },
        },
        title="Triplets: all of a batch, the hardest or the semi-hard ones",
        paper="Hermans et al., In Defense of the Triplet Loss for Person Re-Identification "
        "(2017), equations 5 and 6",
        eager=triplet_of_pairs,
    ),
    FamilyCase(
        ours=cl_kernels.pairwise_contrastive,
        module=cl_kernels.PairwiseContrastiveLoss,
        textbook=pairwise_contrastive,
        inputs=crowded,
        options={
            "plain": plain,
            "other margins": lambda B, D: {"positive_margin": 0.95, "negative_margin": 0.85},
            "learned margins": lambda B, D: {
                "positive_margin": torch.tensor(0.9),
                "negative_margin": torch.tensor(0.8),
            },
            "as they come": lambda B, D: (
                labelled(B, D)
                | {
                    "normalize": False,
                    "positive_margin": 20.0,
                    "negative_margin": 2.0,
                }
            ),
        },
        title="Contrastive loss of pairs, on similarities",
        paper="Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping (2006), "
        "equation 4 on similarities",
        reductions=(),
    ),
    FamilyCase(
        ours=cl_kernels.mega_batch_margin,
        module=cl_kernels.MegaBatchMarginLoss,
        textbook=mega_batch_margin,
        inputs=paired,
        options={
            "plain": plain,
            "other margins": lambda B, D: {"positive_margin": 0.95, "negative_margin": 0.0},
            "learned margins": lambda B, D: {
                "positive_margin": torch.tensor(0.9),
                "negative_margin": torch.tensor(0.2),
            },
            "as they come": lambda B, D: {
                "normalize": False,
                "positive_margin": 25.0,
                "negative_margin": 5.0,
            },
        },
        title="Mega-batch margin: pairs against their hardest negative",
        paper="Wieting and Gimpel, ParaNMT-50M: Pushing the Limits of Paraphrastic Sentence "
        "Embeddings with Millions of Machine Translations (2018), section on mega-batching",
    ),
    FamilyCase(
        ours=cl_kernels.proxy_anchor,
        module=cl_kernels.ProxyAnchorLoss,
        textbook=proxy_anchor,
        inputs=of_classes,
        options={
            "plain": plain,
            "learned margin": lambda B, D: {"margin": torch.tensor(0.2), "alpha": 20.0},
            "as they come": lambda B, D: {"normalize": False, "alpha": 0.5, "margin": 1.0},
        },
        title="Proxy anchor: learned proxies of the classes",
        paper="Kim et al., Proxy Anchor Loss for Deep Metric Learning (2020), equation 4",
        reductions=(),
        rows_matrix=False,
    ),
)
