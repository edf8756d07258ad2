"""Softmax over classes with a margin: ArcFace, CosFace and what they have in common."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor, nn

from cl_kernels._numbers import check_flag, check_number
from cl_kernels.checks import as_scalar, check_indices
from cl_kernels.losses.classes import Margin, contrast_classes
from cl_kernels.losses.common import (
    LARGEST,
    Reduction,
    as_inputs,
    check_reduction,
    inverse,
    logit_bound,
)
from cl_kernels.losses.over_ranks import Gather, over_ranks, over_several
from cl_kernels.losses.own_weight import LossWithWeight
from cl_kernels.ranks.group import Group


def margin_softmax(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    scale: float | Tensor = 64.0,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    sample: float | None = None,
    generator: torch.Generator | None = None,
    normalize: bool = True,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax cross-entropy over classes, whose own class must win by a margin.

    The logits are ``scale * cos(theta_j)``, theta_j the angle between a row and class j's; that of
    its own class is ``scale * (cos(m1 * theta + m2) - m3)``. Deng et al., "ArcFace: Additive
    Angular Margin Loss for Deep Face Recognition" (2019), equation 4. The B x C logits are never
    held, nor is a normalised copy of the weight.

    Beyond pi the cosine rises again, so where ``m1 * theta + m2 > pi`` it gives way to
    ``cos(theta) - max(a * sin(a), 1 - cos(a))``, a being pi minus the largest theta that is not
    beyond: the loss always falls as a row turns to its class. For ``m1 = 1`` and ``m2`` up to 2.33
    that is ``cos(theta) - m2 * sin(m2)``, as in ArcFace's own code.

    Args:
        x: Embeddings, shape [B, D]. float32, float16, bfloat16 or float64.
        target: The class of each row, int64 or int32 [B], in [0, C).
        weight: One row for each class, shape [C, D], same dtype and device as ``x``.
        scale: Inverse temperature: a number, or a 0-d tensor that may require grad.
        m1: The angle's factor, above 0 (SphereFace).
        m2: Added to the angle, in radians, from 0 to pi (ArcFace).
        m3: Taken from the cosine (CosFace).
        sample: Compare with some of the classes only: a count from 1 to C, or (a float) a part of
            them, above 0 and at most 1. They are all classes in ``target`` and others drawn at
            random; the count grows where ``target`` has more. An et al., "Partial FC: Training 10
            Million Identities on a Single Machine" (2021). Default: all.
        generator: Draws the sample; default: torch's own of the weight's device.
        normalize: Divide rows and weight by their length first. If not, the logits are products of
            rows as they come, and there is no angle: ``m1`` and ``m2`` must be left alone.
        reduction: ``"mean"`` or ``"sum"`` over the rows, or ``"none"``.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.
        backend: Which backend serves the call.

    Returns:
        A 0-d tensor, or shape [B] for ``reduction="none"``; float32 (float64 for float64 inputs).
        With one class only the loss is 0; the mean over an empty batch is 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        loss = margin_softmax(features, identities, weight, m1=0.9, m2=0.4, m3=0.15)
    """
    if over_several(gather, group):
        return over_ranks(margin_softmax, locals())
    x, weight = as_inputs(x=x, weight=weight)
    check_indices("target", target, x, weight.shape[0])
    check_flag("normalize", normalize)
    check_margins(m1, m2, m3, normalize)
    check_reduction(reduction)
    check_sample(sample, weight.shape[0], generator)
    target = target.long().contiguous()
    if sample is not None:
        weight, target = _sampled(weight, target, sample, generator)
    return contrast_classes(
        x,
        weight,
        target,
        as_scalar("scale", scale, x),
        Margin(float(m1), float(m2), float(m3)),
        normalize=normalize,
        logit_bound=logit_bound(normalize, scale=scale),
        reduction=reduction,
        backend=backend,
    )


def arcface(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    margin: float = 0.5,
    scale: float | Tensor = 64.0,
    sample: float | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """``margin_softmax`` whose margin is added to the angle: ``scale * cos(theta + margin)``.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (2019),
    equation 3. Arguments, result and errors are those of ``margin_softmax``.

    Args:
        margin: In radians, from 0 to pi.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Example::

        loss = arcface(features, identities, weight)
    """
    if over_several(gather, group):
        return over_ranks(arcface, locals())
    check_angle("margin", margin)
    return margin_softmax(
        x, target, weight, scale=scale, m2=margin, sample=sample, generator=generator,
        reduction=reduction, backend=backend,
    )  # fmt: skip


def cosface(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    margin: float = 0.35,
    scale: float | Tensor = 64.0,
    sample: float | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """``margin_softmax`` whose margin is taken from the cosine: ``scale * (cos(theta) - margin)``.

    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition" (2018), equation 4.
    Arguments, result and errors are those of ``margin_softmax``.

    Args:
        margin: A number.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Example::

        loss = cosface(features, identities, weight)
    """
    if over_several(gather, group):
        return over_ranks(cosface, locals())
    check_finite("margin", margin)
    return margin_softmax(
        x, target, weight, scale=scale, m3=margin, sample=sample, generator=generator,
        reduction=reduction, backend=backend,
    )  # fmt: skip


def normalized_softmax(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    sample: float | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
    group: Group | None = None,
    gather: Gather | None = None,
    backend: str | None = None,
) -> Tensor:
    """Softmax cross-entropy of cosines: ``margin_softmax`` without a margin.

    Wang et al., "NormFace: L2 Hypersphere Embedding for Face Verification" (2017), equation 6;
    Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning" (2019). Arguments,
    result and errors are those of ``margin_softmax``.

    Args:
        temperature: A number other than zero, or a 0-d tensor that may require grad.
        group: Of torch.distributed; default: all processes.
        gather: ``"all"`` or ``"ring"``: the loss of all their batches, see
            ``cl_kernels.distributed``. Default: of this process's alone.

    Example::

        loss = normalized_softmax(features, products, weight)
    """
    if over_several(gather, group):
        return over_ranks(normalized_softmax, locals())
    x, weight = as_inputs(x=x, weight=weight)
    return margin_softmax(
        x, target, weight, scale=inverse(temperature, x), sample=sample, generator=generator,
        reduction=reduction, backend=backend,
    )  # fmt: skip


class _LossOfClasses(LossWithWeight):
    inputs = "x", "target", "weight"
    weight: nn.Parameter


class MarginSoftmaxLoss(_LossOfClasses):
    """``margin_softmax`` with a learned weight: ``MarginSoftmaxLoss(num_classes, dim)`` is called
    ``loss(x, target)``.

    The weight starts from a normal distribution of deviation 0.01. Without ``num_classes`` and
    ``dim`` there is none: ``loss(x, target, weight)``. Settings are the function's other arguments.
    """

    function = margin_softmax


class ArcFaceLoss(_LossOfClasses):
    """``arcface`` with a learned weight, as ``MarginSoftmaxLoss``."""

    function = arcface


class CosFaceLoss(_LossOfClasses):
    """``cosface`` with a learned weight, as ``MarginSoftmaxLoss``."""

    function = cosface


class NormalizedSoftmaxLoss(_LossOfClasses):
    """``normalized_softmax`` with a learned weight, as ``MarginSoftmaxLoss``; a temperature may be
    an ``nn.Parameter`` (0-d), which is learned."""

    function = normalized_softmax


def check_finite(name: str, value: float) -> None:
    check_number(name, value)
    if not -LARGEST <= value <= LARGEST:  # torch.compile does not see into math.isfinite
        raise ValueError(f"{name}: expected a finite number, got {value}, and float32 holds 3.4e38")


def check_angle(name: str, value: float) -> None:
    check_number(name, value)
    if not 0 <= value <= math.pi:
        raise ValueError(f"{name}: expected an angle from 0 to pi, in radians, got {value}")


def check_margins(m1: float, m2: float, m3: float, normalize: bool) -> None:
    check_finite("m1", m1)
    if m1 <= 0:
        raise ValueError(f"m1: expected a number above 0, got {m1}")
    check_angle("m2", m2)
    check_finite("m3", m3)
    if not normalize and (m1 != 1 or m2 != 0):
        raise ValueError(
            f"normalize: expected True with margins of the angle, m1={m1} and m2={m2}, got False"
        )


def check_sample(sample: float | None, classes: int, generator: torch.Generator | None) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        kind = type(generator).__name__
        raise TypeError(f"generator: expected a torch.Generator, got {kind}")
    if sample is None:
        return
    check_number("sample", sample)
    if isinstance(sample, Integral):
        if not 1 <= sample <= classes:
            raise ValueError(f"sample: expected from 1 to {classes} classes, got {sample}")
    elif not 0 < sample <= 1:
        raise ValueError(f"sample: expected a part above 0, at most 1, or a count, got {sample}")


def _sampled(
    weight: Tensor, target: Tensor, sample: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The weight's rows of the classes in ``target`` and of others, and ``target`` among them."""
    classes = weight.shape[0]
    count = int(sample) if isinstance(sample, Integral) else max(1, int(sample * classes))
    if count < min(len(target), classes):
        count = max(count, len(target.unique()))
    drawn = torch.rand(classes, generator=generator, device=weight.device)
    kept = drawn.index_fill(0, target, 2).topk(count, sorted=False).indices.sort().values
    return weight.index_select(0, kept), torch.searchsorted(kept, target)
