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


def softplus(negatives: Tensor, positive: Tensor) -> Tensor:
    """``log(1 + exp(negatives - positive))``; no negative at all (-inf) gives loss 0.

    Of a log-sum-exp over negatives only this is ``-log softmax`` over all keys, which in float32
    would lose every digit of a small loss.
    """
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


EPILOGUES = {
    "softplus": Epilogue(softplus, _softplus_pulls),
    "difference": Epilogue(difference, _difference_pulls),
}
