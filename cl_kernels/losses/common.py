"""What the losses share: checks, temperatures and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels._precision import accumulator, widest
from cl_kernels.checks import as_alike, as_scalar, check_embeddings
from cl_kernels.losses.batch import the_batch
from cl_kernels.reading import readable

Reduction = Literal["mean", "sum", "none"]

LARGEST = torch.finfo(torch.float32).max

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
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    *,
    matching: bool = True,
) -> tuple[Tensor, Tensor, float | Tensor]:
    """What losses of images and texts are called with, checked; ``matching``: row by row."""
    image_features, text_features = as_inputs(
        image_features=image_features, text_features=text_features
    )
    if matching:
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
    if not 0 < value <= LARGEST:
        raise ValueError(f"{name}: expected {expected}, finite in float32, got {value}")


def as_weights(weights: Tensor | None, like: Tensor, rows: int, of: str) -> Tensor | None:
    """One weight for each row, [rows], in the accumulation type."""
    if weights is None:
        return None
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights: expected a floating-point tensor, got {kind}")
    if weights.shape != (rows,):
        raise ValueError(
            f"weights: expected one for each of the {rows} {of}, got shape {list(weights.shape)}"
        )
    if weights.device != like.device:
        raise ValueError(
            f"weights: expected the device of the embeddings, {like.device}, got {weights.device}"
        )
    if readable(weights) and not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights: expected finite numbers of at least 0, got others")
    return weights.to(accumulator(like))


def check_smoothing(label_smoothing: float, **excluded: object) -> None:
    """Raises unless it is in [0, 1), and 0 where one of these is given: the mean over all keys
    that smoothing asks for would have to leave some out."""
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected 0 <= number < 1, got {label_smoothing}")
    for name, given in excluded.items():
        if label_smoothing and given:
            raise ValueError(f"label_smoothing: expected 0 with {name}, got {label_smoothing}")


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


def weighted_total(losses: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """As ``total``, of weighted rows; their mean is divided by the sum of the weights."""
    if weights is None:
        return total(losses, reduction)
    weighted = total(weights * losses, "none" if reduction == "none" else "sum")
    if reduction != "mean":
        return weighted
    weight = the_batch().sum(weights.sum())
    return weighted / torch.where(weight == 0, 1, weight)


def no_loss(rows: int, reduction: str, *inputs: float | Tensor) -> Tensor:
    """Of rows without negatives: 0, with gradient 0."""
    given = [x for x in inputs if isinstance(x, Tensor)]
    dtype = accumulator(given[0])
    none = sum((x.reshape(-1)[:0].to(dtype).sum() for x in given), given[0].new_zeros(()))
    zero = torch.as_tensor(none).to(dtype)
    return zero.expand(rows) if reduction == "none" else zero


def union(sets: Sequence[Tensor]) -> Tensor:
    """One log-sum-exp of several sets' of keys. Of rows without any key it is the least number:
    of two that are -inf the gradient would be NaN."""
    if len(sets) == 1:
        return sets[0]
    least = torch.finfo(sets[0].dtype).min
    return reduce(torch.logaddexp, [lse.clamp_min(least) for lse in sets])


def in_full(a: Tensor, b: Tensor) -> Tensor:
    """Their product, which autocast leaves alone."""
    if not torch.is_autocast_enabled(a.device.type):
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def total(losses: Tensor, reduction: str) -> Tensor:
    """Mean or sum of the rows' losses; the mean of no row is 0."""
    if reduction == "none":
        return losses
    count = losses.numel()
    if reduction == "mean" and the_batch().parted:
        return losses.sum() / max(the_batch().count(count), 1)
    if isinstance(count, int) and count < _SERIAL_SUM:  # a symbol would compile for either side
        return losses.mean() if reduction == "mean" and count else losses.sum()
    # torch splits a longer sum by threads: in float64 the result does not show it.
    exact = losses.sum(dtype=widest(losses.device))
    return (exact / max(count, 1) if reduction == "mean" else exact).to(losses.dtype)
