"""What a loss makes of a row's statistic over its negatives and of its positive's logit.

The same functions stand in ``csrc/epilogues.h``, by the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pulls = tuple[Tensor, Tensor]


class Epilogue(NamedTuple):
    """``value(negatives, positive)``, elementwise, and its two derivatives, ``pulls``."""

    value: Callable[[Tensor, Tensor], Tensor]
    pulls: Callable[[Tensor, Tensor], Pulls]


def contrast(negatives: Tensor, positive: Tensor) -> Tensor:
    """``log(1 + exp(negatives - positive))``: the loss of a positive against its negatives.

    Of a log-sum-exp over negatives only this is ``-log softmax`` of the positive over all keys,
    which in float32 would lose every digit of a small loss.

    Args:
        negatives: Log-sum-exp of each query's logits over its negatives, without the positive.
        positive: The logit of its positive, same shape.

    Returns:
        Same shape. A query without negatives (-inf) has loss 0 and gradient 0.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        different = PairFilter(ids, ids, "different")
        negatives = row_logsumexp(query, key, 20.0, where=different)
        loss = contrast(negatives, pair_logits(query, key, 20.0)).mean()
    """
    for name, x in (("negatives", negatives), ("positive", positive)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: expected a floating-point tensor, got {what}")
    if positive.shape != negatives.shape:
        raise ValueError(
            f"positive: expected the shape of negatives, {list(negatives.shape)}, "
            f"got {list(positive.shape)}"
        )
    return softplus(negatives, positive)


def softplus(negatives: Tensor, positive: Tensor) -> Tensor:
    """``log(1 + exp(negatives - positive))``."""
    return F.softplus(negatives - positive, threshold=40)


def _softplus_pulls(negatives: Tensor, positive: Tensor) -> Pulls:
    pull = (negatives - positive).sigmoid()
    return pull, -pull


def difference(negatives: Tensor, positive: Tensor) -> Tensor:
    """``negatives - positive``: a positive that is no part of its own denominator."""
    return negatives - positive


def _difference_pulls(negatives: Tensor, positive: Tensor) -> Pulls:
    one = torch.ones_like(negatives)
    return one, -one


def sigmoid(negatives: Tensor, positive: Tensor) -> Tensor:
    """``negatives - log sigmoid(positive)``, for a sum of softplus over negatives."""
    return negatives + F.softplus(-positive, threshold=40)


def _sigmoid_pulls(negatives: Tensor, positive: Tensor) -> Pulls:
    return torch.ones_like(negatives), -(-positive).sigmoid().expand_as(negatives)


EPILOGUES = {
    "softplus": Epilogue(softplus, _softplus_pulls),
    "difference": Epilogue(difference, _difference_pulls),
    "sigmoid": Epilogue(sigmoid, _sigmoid_pulls),
}
