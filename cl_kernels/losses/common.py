"""What the losses share: checks, temperatures and reductions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cl_kernels.checks import check_embeddings, check_matches, check_scalar

Reduction = Literal["mean", "sum", "none"]

_SERIAL_SUM = 32768  # torch's grain: a shorter sum is taken by one thread


def check_inputs(**embeddings: Tensor) -> None:
    """Embeddings of one width, dtype and device; the message names the argument at fault."""
    (first_name, first), *others = embeddings.items()
    check_embeddings(first_name, first)
    for name, x in others:
        check_embeddings(name, x)
        check_matches(name, x, first_name, first)


def check_same_rows(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name}: expected as many rows as {like_name}, {like.shape[0]}, got {x.shape[0]}"
        )


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')


def inverse(temperature: float | Tensor) -> float | Tensor:
    """The scale of a temperature, which may be negative but not zero."""
    check_scalar("temperature", temperature, nonzero=True)
    return 1 / temperature


def logit_bound(scale: float | Tensor, normalize: bool) -> float | None:
    """What no logit of unit vectors exceeds, if the host knows it."""
    if not normalize or isinstance(scale, Tensor):
        return None
    return abs(scale) * 1.01  # rounding to bfloat16 may lengthen a unit vector by 2^-8


def total(losses: Tensor, reduction: str) -> Tensor:
    """Mean or sum of the rows' losses; the mean of no row is 0."""
    if reduction == "none":
        return losses
    if losses.numel() < _SERIAL_SUM:
        return losses.mean() if reduction == "mean" and losses.numel() else losses.sum()
    # torch splits a longer sum by threads: in float64 the result does not show it.
    exact = losses.sum(dtype=torch.float64)
    return (exact / losses.numel() if reduction == "mean" else exact).to(losses.dtype)
