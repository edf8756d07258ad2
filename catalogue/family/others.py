"""Losses of scored pairs, of distillation and without negatives, and their textbook forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from catalogue.family.case import Arguments, FamilyCase, plain
from catalogue.textbook import rows


def scored_pairs(B: int, D: int) -> Arguments:
    """Related pairs, and targets in steps of a fifth."""
    first = torch.randn(B, D)
    return {
        "first": first,
        "second": first + torch.linspace(0, 3, B)[:, None] * torch.randn(B, D),
        "similarity": torch.randint(0, 6, (B,)) / 5,
    }


def _ranked(scores: Tensor, similarity: Tensor) -> Tensor:
    """All differences, and log(1 + sum exp) of those that the order of the targets forbids."""
    differences = scores[None, :] - scores[:, None]
    forbidden = differences[similarity[:, None] > similarity[None, :]]
    return torch.cat((scores.new_zeros(1), forbidden)).logsumexp(0)


def cosent(first: Tensor, second: Tensor, similarity: Tensor, *, scale=20.0, normalize=True):
    first, second = rows(first, normalize), rows(second, normalize)
    return _ranked(scale * (first * second).sum(1), similarity)


def angle(first: Tensor, second: Tensor, similarity: Tensor, *, scale=20.0, normalize=True):
    if first.shape[1] % 2:
        first, second = F.pad(first, (0, 1)), F.pad(second, (0, 1))
    a, b = first.chunk(2, 1)
    c, d = second.chunk(2, 1)
    # (a + bi) / (c + di), over |a + bi| / |c + di|
    squared = (c * c + d * d).sum(1, keepdim=True)
    real, imaginary = (a * c + b * d) / squared, (b * c - a * d) / squared
    lengths = (first.norm(dim=1) / second.norm(dim=1)) if normalize else 1 / squared[:, 0]
    return _ranked(scale * ((real + imaginary).sum(1) / lengths).abs(), similarity)


def taught(B: int, D: int) -> Arguments:
    """A teacher of half the width, which sees what the student sees."""
    query = torch.randn(B, D)
    key = query + 0.5 * torch.randn(B, D)
    teacher_query, teacher_key = (x[:, : D // 2] + 0.3 for x in (query, key))
    return {"query": query, "key": key, "teacher_query": teacher_query, "teacher_key": teacher_key}


def distill(
    query: Tensor,
    key: Tensor,
    teacher_query: Tensor,
    teacher_key: Tensor,
    *,
    temperature=0.1,
    teacher_temperature=None,
    divergence="kl",
    symmetric=False,
    normalize=True,
    reduction="mean",
):
    query, key = rows(query, normalize), rows(key, normalize)
    student = query @ key.T / temperature
    if teacher_temperature is None:
        teacher_temperature = temperature
    teacher_query, teacher_key = rows(teacher_query, normalize), rows(teacher_key, normalize)
    teacher = (teacher_query @ teacher_key.T / teacher_temperature).detach()

    def along(dim):
        p, log_s = teacher.softmax(dim), student.log_softmax(dim)
        if divergence == "kl":
            return F.kl_div(log_s, p, reduction="none").sum(dim)
        return -(p * log_s).sum(dim)

    losses = (along(1) + along(0)) / 2 if symmetric else along(1)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def margins(B: int, D: int) -> Arguments:
    names = "query", "positive", "negatives"
    return {name: torch.randn(B, D) for name in names} | {"teacher_margin": torch.randn(B)}


def margin_mse(query, positive, negatives, teacher_margin, *, normalize=False, reduction="mean"):
    query, positive, negatives = (rows(x, normalize) for x in (query, positive, negatives))
    if negatives.dim() == 3:
        query, positive = query[:, None], positive[:, None]
    margin = (query * positive).sum(-1) - (query * negatives).sum(-1)
    # torch 2.11 has no gradient of two dtypes.
    margin = margin.to(torch.promote_types(margin.dtype, teacher_margin.dtype))
    return F.mse_loss(margin, teacher_margin.detach(), reduction=reduction)


def _several_margins(B: int, D: int) -> Arguments:
    return {"negatives": torch.randn(B, 5, D), "teacher_margin": torch.randn(B, 5)}


def views(B: int, D: int) -> Arguments:
    """Columns of many scales."""
    first = torch.randn(B, D) * torch.linspace(0.2, 2, D)
    return {"first": first, "second": first + 0.3 * torch.randn(B, D)}


def vicreg(first, second, *, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4):
    B, D = first.shape
    s = (first - second).square().sum(1).mean() / D

    def v(z):
        return F.relu(1 - (z.var(0) + eps).sqrt()).mean()

    def c(z):
        deviations = z - z.mean(0)
        matrix = deviations.T @ deviations / (B - 1)
        return matrix[~torch.eye(D, dtype=torch.bool)].square().sum() / D

    both = v(first) + v(second), c(first) + c(second)
    return invariance * s + variance * both[0] / 2 + covariance * both[1]


def barlow_twins(first, second, *, redundancy=0.005, eps=1e-5):
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt() for z in (first, second))
    squared = (a.T @ b / len(a) - torch.eye(a.shape[1], dtype=a.dtype)).square()
    on = torch.eye(a.shape[1], dtype=torch.bool)
    return squared[on].sum() + redundancy * squared[~on].sum()


def predictions(B: int, D: int) -> Arguments:
    return {"prediction": torch.randn(B, D), "target": torch.randn(B, D)}


def negative_cosine(
    prediction, target, *, stop_gradient=True, squared_distance=False, reduction="mean"
):
    target = target.detach() if stop_gradient else target
    if squared_distance:
        losses = (rows(prediction, True) - rows(target, True)).square().sum(1)
    else:
        losses = -F.cosine_similarity(prediction, target)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


_SCORED_OPTIONS = {
    "plain": plain,
    "whole numbers": lambda B, D: {"similarity": torch.arange(B) % 7 - 3},
    "alike or not": lambda B, D: {"similarity": torch.arange(B) % 3 == 0},
    "odd width": lambda B, D: {"first": torch.randn(B, D - 1), "second": torch.randn(B, D - 1)},
    "learned scale": lambda B, D: {"scale": torch.tensor(9.0)},
    "as they come": lambda B, D: {"normalize": False, "scale": 0.2},
}

CASES = (
    FamilyCase(
        ours=cl_kernels.cosent,
        module=cl_kernels.CoSENTLoss,
        textbook=cosent,
        inputs=scored_pairs,
        options=_SCORED_OPTIONS,
        title="CoSENT: pairs with target similarities",
        paper="Su, CoSENT: A more efficient sentence vector scheme than Sentence-BERT (2022)",
        reductions=(),
    ),
    FamilyCase(
        ours=cl_kernels.angle,
        module=cl_kernels.AnglELoss,
        textbook=angle,
        inputs=scored_pairs,
        options=_SCORED_OPTIONS,
        title="AnglE: the same by an angle in complex space",
        paper="Li and Li, AnglE-optimized Text Embeddings (2023), the angle objective",
        reductions=(),
    ),
    FamilyCase(
        ours=cl_kernels.distill,
        module=cl_kernels.DistillLoss,
        textbook=distill,
        inputs=taught,
        options={
            "plain": plain,
            "cross-entropy": lambda B, D: {"divergence": "cross_entropy"},
            "symmetric": lambda B, D: {"symmetric": True, "divergence": "cross_entropy"},
            "further keys": lambda B, D: {
                "key": torch.randn(3 * B, D),
                "teacher_key": torch.randn(3 * B, D // 2),
            },
            "two temperatures": lambda B, D: {
                "temperature": torch.tensor(0.2),
                "teacher_temperature": 0.07,
            },
            "one learned temperature": lambda B, D: {"temperature": torch.tensor(0.2)},
            "as they come": lambda B, D: {"normalize": False, "temperature": 9.0},
        },
        title="Distillation of a teacher's similarities",
        paper="Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2",
    ),
    FamilyCase(
        ours=cl_kernels.margin_mse,
        module=cl_kernels.MarginMSELoss,
        textbook=margin_mse,
        inputs=margins,
        options={
            "plain": plain,
            "cosines": lambda B, D: {"normalize": True},
            "several": _several_margins,
            "several, cosines": lambda B, D: _several_margins(B, D) | {"normalize": True},
        },
        title="MarginMSE: margins of a cross-encoder",
        paper="Hofstätter et al., Improving Efficient Neural Ranking Models with "
        "Cross-Architecture Knowledge Distillation (2020), equation 8",
        rows_matrix=False,
    ),
    FamilyCase(
        ours=cl_kernels.vicreg,
        module=cl_kernels.VICRegLoss,
        textbook=vicreg,
        inputs=views,
        options={
            "plain": plain,
            "weights": lambda B, D: {"invariance": 1.0, "variance": 2.0, "covariance": 3.0},
            "eps": lambda B, D: {"eps": 0.5},
        },
        title="VICReg",
        paper="Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for "
        "Self-Supervised Learning (2022), equations 1 to 6",
        reductions=(),
        rows_matrix=False,
    ),
    FamilyCase(
        ours=cl_kernels.barlow_twins,
        module=cl_kernels.BarlowTwinsLoss,
        textbook=barlow_twins,
        inputs=views,
        options={
            "plain": plain,
            "redundancy": lambda B, D: {"redundancy": 2.0},
            "eps": lambda B, D: {"eps": 0.5},
        },
        title="Barlow Twins",
        paper="Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction "
        "(2021), equation 1",
        reductions=(),
        rows_matrix=False,
    ),
    FamilyCase(
        ours=cl_kernels.negative_cosine,
        module=cl_kernels.NegativeCosineLoss,
        textbook=negative_cosine,
        inputs=predictions,
        options={
            "plain": plain,
            "of both": lambda B, D: {"stop_gradient": False},
            "squared distance": lambda B, D: {"squared_distance": True},
        },
        title="Negative cosine: SimSiam and BYOL",
        paper="Chen and He, Exploring Simple Siamese Representation Learning (2021), equation 1",
        rows_matrix=False,
    ),
)
