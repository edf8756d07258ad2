"""Losses of rows against learned rows of classes, and their textbook forms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

import cl_kernels
from catalogue.family.case import Arguments, FamilyCase, plain
from catalogue.textbook import rows


def of_classes(B: int, D: int) -> Arguments:
    """Rows around those of their classes, some far away; most classes have none."""
    target = torch.randint(B + B // 2, (B,))
    weight = 0.3 * torch.randn(B + B // 2, D)
    spread = torch.linspace(-1.5, 3, B)[:, None]
    return {"x": spread * weight[target] + 0.5 * torch.randn(B, D), "target": target} | {
        "weight": weight
    }


def _beyond_pi(cosine, m1, m2):
    if m1 == 1:  # as the authors' code has it
        return cosine - m2 * math.sin(m2)
    last = (math.pi - m2) / m1
    a = math.pi - last
    return cosine - max(a * math.sin(a), 1 - math.cos(a))


def _own_logit(cosine, m1, m2, m3):
    if m1 == 1 and m2 == 0:
        return cosine - m3
    shifted = m1 * torch.acos(cosine) + m2
    return torch.where(shifted > math.pi, _beyond_pi(cosine, m1, m2), torch.cos(shifted)) - m3


def margin_softmax(
    x,
    target,
    weight,
    *,
    scale=64.0,
    m1=1.0,
    m2=0.0,
    m3=0.0,
    sample=None,
    generator=None,
    normalize=True,
    reduction="mean",
):
    cosine = rows(x, normalize) @ rows(weight, normalize).T
    own = F.one_hot(target, len(weight)).bool()
    logits = scale * torch.where(own, _own_logit(cosine, m1, m2, m3), cosine)
    if sample is not None:
        assert len(target.unique()) >= sample  # nothing is left to chance
        logits = logits.masked_fill(~own.any(0), -torch.inf)
    return F.cross_entropy(logits, target, reduction=reduction)


def arcface(
    x, target, weight, *, margin=0.5, scale=64.0, sample=None, generator=None, reduction="mean"
):
    more = {"scale": scale, "sample": sample, "reduction": reduction}
    return margin_softmax(x, target, weight, m2=margin, **more)


def cosface(
    x, target, weight, *, margin=0.35, scale=64.0, sample=None, generator=None, reduction="mean"
):
    more = {"scale": scale, "sample": sample, "reduction": reduction}
    return margin_softmax(x, target, weight, m3=margin, **more)


def normalized_softmax(
    x, target, weight, *, temperature=0.05, sample=None, generator=None, reduction="mean"
):
    more = {"scale": 1 / temperature, "sample": sample, "reduction": reduction}
    return margin_softmax(x, target, weight, **more)


def _sampled(B: int, D: int) -> Arguments:
    return {"sample": 1, "generator": torch.Generator()}


CASES = (
    FamilyCase(
        ours=cl_kernels.margin_softmax,
        module=cl_kernels.MarginSoftmaxLoss,
        textbook=margin_softmax,
        inputs=of_classes,
        options={
            "plain": plain,
            "combined": lambda B, D: {"m1": 0.9, "m2": 0.4, "m3": 0.15},
            "factor": lambda B, D: {"m1": 2.0, "scale": 16.0},
            "factor, wide": lambda B, D: {"m1": 4.0, "m2": 0.2, "scale": 16.0},
            "angle": lambda B, D: {"m2": 1.2, "scale": 16.0},
            "learned scale": lambda B, D: {"m2": 0.3, "scale": torch.tensor(10.0)},
            "sample": _sampled,
            "as they come": lambda B, D: {"normalize": False, "m3": 0.5, "scale": 2.0},
        },
        title="Margin softmax over classes, up to millions; Partial FC",
        paper="Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition "
        "(2019), equation 4",
        rows_matrix=False,
    ),
    FamilyCase(
        ours=cl_kernels.arcface,
        module=cl_kernels.ArcFaceLoss,
        textbook=arcface,
        inputs=of_classes,
        options={
            "plain": plain,
            "other": lambda B, D: {"margin": 0.2, "scale": torch.tensor(30.0)},
            "sample": _sampled,
        },
        title="ArcFace",
        paper="Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition "
        "(2019), equation 3",
        rows_matrix=False,
    ),
    FamilyCase(
        ours=cl_kernels.cosface,
        module=cl_kernels.CosFaceLoss,
        textbook=cosface,
        inputs=of_classes,
        options={
            "plain": plain,
            "other": lambda B, D: {"margin": -0.2, "scale": torch.tensor(30.0)},
            "sample": _sampled,
        },
        title="CosFace",
        paper="Wang et al., CosFace: Large Margin Cosine Loss for Deep Face Recognition (2018), "
        "equation 4",
        rows_matrix=False,
    ),
    FamilyCase(
        ours=cl_kernels.normalized_softmax,
        module=cl_kernels.NormalizedSoftmaxLoss,
        textbook=normalized_softmax,
        inputs=of_classes,
        options={
            "plain": plain,
            "learned temperature": lambda B, D: {"temperature": torch.tensor(0.1)},
            "sample": _sampled,
        },
        title="NormFace: softmax of cosines",
        paper="Wang et al., NormFace: L2 Hypersphere Embedding for Face Verification (2017)",
        rows_matrix=False,
    ),
)
