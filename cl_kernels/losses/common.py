"""What the losses share: checks, temperatures and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels._precision import widest
from cl_kernels.checks import as_alike, as_scalar, check_embeddings

Reduction = Literal["mean", "sum", "none"]

_SERIAL_SUM = 32768  # torch's grain: a shorter sum is taken by one thread


def as_inputs(**embeddings: Tensor) -> tuple[Tensor, ...]:
    """Embeddings of one width, dtype and device; the message names the argument at fault."""
    for name, x in embeddings.items():
        check_embeddings(name, x)
    return as_alike(**embeddings)


def check_same_rows(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name}: expected as many rows as {like_name}, {like.shape[0]}, got {x.shape[0]}"
        )


def as_image_text(
    image_features: Tensor, text_features: Tensor, logit_scale: float | Tensor
) -> tuple[Tensor, Tensor, float | Tensor]:
    """What losses of matching images and texts are called with, checked."""
    image_features, text_features = as_inputs(
        image_features=image_features, text_features=text_features
    )
    check_same_rows("text_features", text_features, "image_features", image_features)
    return image_features, text_features, as_scalar("logit_scale", logit_scale, image_features)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        *others, last = [f'"{choice}"' for choice in choices]
        raise ValueError(f"{name}: expected {', '.join(others)} or {last}, got {value!r}")


def check_reduction(reduction: str) -> None:
    check_choice("reduction", reduction, ("mean", "sum", "none"))


def check_positive(name: str, value: float) -> None:
    expected = "a positive number"
    check_number(name, value, expected)
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def inverse(temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """The scale of a temperature, which may be negative but not zero, for such embeddings."""
    return as_scalar("temperature", temperature, like, inverted=True)


def logit_bound(
    normalize: bool, *, scale: float | Tensor = 1.0, temperature: float | Tensor = 1.0
) -> float | None:
    """What no logit of unit vectors exceeds, if the host knows it."""
    if not normalize or isinstance(scale, Tensor) or isinstance(temperature, Tensor):
        return None
    return abs(scale / temperature) * 1.01  # a unit vector in bfloat16 may be longer by 2^-8


def total(losses: Tensor, reduction: str) -> Tensor:
    """Mean or sum of the rows' losses; the mean of no row is 0."""
    if reduction == "none":
        return losses
    count = losses.numel()
    if isinstance(count, int) and count < _SERIAL_SUM:  # a symbol would compile for either side
        return losses.mean() if reduction == "mean" and count else losses.sum()
    # torch splits a longer sum by threads: in float64 the result does not show it.
    exact = losses.sum(dtype=widest(losses.device))
    return (exact / max(count, 1) if reduction == "mean" else exact).to(losses.dtype)
