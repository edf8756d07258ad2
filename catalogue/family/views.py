"""Losses of two views of each image, and their textbook forms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from catalogue.family.case import Arguments, FamilyCase, plain
from catalogue.textbook import rows


def views(B: int, D: int) -> Arguments:
    """Two rows around the centre of each image; some images are near one another."""
    centres = torch.randn(B, D)
    centres[1::4] = centres[::4][: len(centres[1::4])] + 0.3 * torch.randn(len(centres[1::4]), D)
    noise = 0.7 * torch.randn(2, B, D)
    return {"view_0": centres + noise[0], "view_1": centres + noise[1]}


def reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def decoupled(
    view_0: Tensor,
    view_1: Tensor,
    temperature=0.1,
    *,
    partition="joint",
    normalize=True,
    reduction="mean",
):
    return _decoupled(view_0, view_1, temperature, None, partition, normalize, reduction)


def weighted_decoupled(
    view_0: Tensor,
    view_1: Tensor,
    temperature=0.1,
    *,
    sigma=0.5,
    partition="joint",
    normalize=True,
    reduction="mean",
):
    return _decoupled(view_0, view_1, temperature, sigma, partition, normalize, reduction)


def _decoupled(view_0, view_1, temperature, sigma, partition, normalize, reduction):
    z = [rows(view_0, normalize), rows(view_1, normalize)]
    same = torch.eye(len(view_0), dtype=torch.bool)
    weight = 1
    if sigma is not None:
        weight = 2 - len(view_0) * F.softmax((z[0] * z[1]).sum(1).detach() / sigma, 0)
    losses = []
    for mine, other in ((z[0], z[1]), (z[1], z[0])):
        across = mine @ other.T / temperature
        within = (mine @ mine.T / temperature).masked_fill(same, -torch.inf)
        negatives = [within, across.masked_fill(same, -torch.inf)]
        if partition == "joint":
            negatives = [torch.cat(negatives, 1)]
        lse = sum(x.logsumexp(1) for x in negatives)
        losses.append(lse - weight * across.diagonal())
    return reduced(torch.cat(losses), reduction)


def hard_negative(
    view_0: Tensor,
    view_1: Tensor,
    temperature=0.5,
    *,
    beta=1.0,
    tau_plus=0.1,
    normalize=True,
    reduction="mean",
):
    B = len(view_0)
    z = rows(torch.cat((view_0, view_1)), normalize)
    exp = (z @ z.T / temperature).exp()
    image = torch.arange(2 * B) % B
    different = image[:, None] != image
    weight = torch.where(different, exp**beta, 0)
    N = 2 * B - 2
    negatives = N * torch.where(different, weight * exp, 0).sum(1) / weight.sum(1)
    positive = exp.diagonal(B).repeat(2)
    negatives = (negatives - tau_plus * N * positive) / (1 - tau_plus)
    least = N * torch.as_tensor(-1 / temperature, dtype=exp.dtype).exp()
    negatives = torch.maximum(negatives, least)
    return reduced(-(positive / (positive + negatives)).log(), reduction)


def eager_hard_negative(view_0, view_1, temperature=0.5, beta=1.0, tau_plus=0.1):
    """In the steps of the authors' own implementation, which makes its mask row by row."""
    first, second = F.normalize(view_0, dim=1), F.normalize(view_1, dim=1)
    out, B = torch.cat((first, second), dim=0), len(first)
    kept = torch.ones((B, 2 * B), dtype=torch.bool)
    for i in range(B):
        kept[i, i] = kept[i, i + B] = False
    kept = torch.cat((kept, kept), 0)
    negatives = torch.exp(torch.mm(out, out.t().contiguous()) / temperature)
    negatives = negatives.masked_select(kept).view(2 * B, -1)
    positive = torch.exp(torch.sum(first * second, dim=-1) / temperature)
    positive = torch.cat((positive, positive), dim=0)
    N = 2 * B - 2
    importance = (beta * negatives.log()).exp()
    reweighted = (importance * negatives).sum(dim=-1) / importance.mean(dim=-1)
    total = (-tau_plus * N * positive + reweighted) / (1 - tau_plus)
    total = torch.clamp(total, min=N * math.exp(-1 / temperature))
    return (-torch.log(positive / (positive + total))).mean()


CASES = (
    FamilyCase(
        ours=cl_kernels.decoupled,
        module=cl_kernels.DecoupledLoss,
        textbook=decoupled,
        inputs=views,
        options={
            "plain": plain,
            "per view": lambda B, D: {"partition": "per_view"},
            "learned temperature": lambda B, D: {"temperature": torch.tensor(0.25)},
            "per view, learned temperature": lambda B, D: {
                "partition": "per_view",
                "temperature": torch.tensor(0.25),
            },
            "as they come": lambda B, D: {"normalize": False, "temperature": 40.0},
        },
        title="DCL: NT-Xent without the positive in the denominator",
        paper="Yeh et al., Decoupled Contrastive Learning (2021), equation 6",
    ),
    FamilyCase(
        ours=cl_kernels.weighted_decoupled,
        module=cl_kernels.WeightedDecoupledLoss,
        textbook=weighted_decoupled,
        inputs=views,
        options={
            "plain": plain,
            "per view": lambda B, D: {"partition": "per_view", "sigma": 0.2},
            "learned temperature": lambda B, D: {"temperature": torch.tensor(0.25)},
            "as they come": lambda B, D: {"normalize": False, "temperature": 40.0, "sigma": 20},
        },
        title="DCLW: DCL with more weight on positives that are far apart",
        paper="Yeh et al., Decoupled Contrastive Learning (2021), equation 7",
    ),
    FamilyCase(
        ours=cl_kernels.hard_negative,
        module=cl_kernels.HardNegativeLoss,
        textbook=hard_negative,
        inputs=views,
        options={
            "plain": plain,
            "debiased": lambda B, D: {"beta": 0.0},
            "neither": lambda B, D: {"beta": 0.0, "tau_plus": 0.0},
            "hard, not debiased": lambda B, D: {"beta": 0.5, "tau_plus": 0.0},
            "clamped": lambda B, D: {"tau_plus": 0.4},
            "learned temperature": lambda B, D: {"temperature": torch.tensor(0.25)},
            "as they come": lambda B, D: {"normalize": False, "temperature": 40.0},
        },
        eager=eager_hard_negative,
        title="Hard and debiased negatives",
        paper="Robinson et al., Contrastive Learning with Hard Negative Samples (2021), equation 4",
    ),
)
