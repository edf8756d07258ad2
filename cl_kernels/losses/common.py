"""What the losses share: the precision boundary, temperatures and reductions."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.checks import check_embeddings, check_matches, check_scalar

Reduction = Literal["mean", "sum", "none"]


class _UnitRows(torch.autograd.Function):
    """Rows of all inputs, stacked and divided by their norms: one buffer, one rounding at the end.

    Composed from torch operations the same takes three more copies of the embeddings.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor):
        dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
        rows = torch.cat([x.to(dtype) for x in inputs]) if len(inputs) > 1 else inputs[0].to(dtype)
        # As torch.nn.functional.normalize: a zero row stays zero instead of becoming NaN.
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        unit = rows / norm
        ctx.save_for_backward(unit, norm)
        ctx.sizes = [x.shape[0] for x in inputs]
        ctx.dtype = inputs[0].dtype
        return unit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        unit, norm = ctx.saved_tensors
        (grad,) = grads
        along = (unit * grad).sum(1, keepdim=True)
        grad_rows = torch.addcmul(grad, unit, along, value=-1).div_(norm).to(ctx.dtype)
        return tuple(grad_rows.split(ctx.sizes))


def float_rows(*inputs: Tensor, normalize: bool) -> Tensor:
    """The inputs' rows stacked, in float32 (or float64), of unit length if ``normalize``."""
    if normalize:
        return _UnitRows.apply(*inputs)
    rows = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
    return rows if rows.dtype == torch.float64 else rows.float()


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
    return abs(scale) * 1.001  # rounding to bfloat16 may lengthen a unit vector


def contrast(negatives: Tensor, positive: Tensor) -> Tensor:
    """``-log(e^positive / (e^positive + e^negatives))`` without cancellation.

    ``negatives`` is the log-sum-exp over negatives only; ``lse_all - positive`` would lose every
    digit of a small loss in float32. No negative at all (-inf) gives loss 0.
    """
    return F.softplus(negatives - positive, threshold=40)


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """Mean or sum, accumulated in float64 so that it does not depend on the thread count."""
    if reduction == "none":
        return losses
    total = losses.sum(dtype=torch.float64)
    if reduction == "mean":
        total = total / max(losses.numel(), 1)
    return total.to(losses.dtype)
