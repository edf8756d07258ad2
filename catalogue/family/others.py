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
        paper="Li and Li, AnglE-optimized Text Embeddings (2023), equations 3 to 5",
        reductions=(),
    ),
)
