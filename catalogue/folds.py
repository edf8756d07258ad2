"""Every fold of the statistics once: what the textbook and eager PyTorch make of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Values = tuple[Tensor, ...]


class FoldCase(NamedTuple):
    """
    Args:
        textbook: The values over one dimension of logits, where dropped pairs are -inf.
        terms: As people write it: what they make of the logits, once for rows and columns.
        eager: And then the values over one dimension of that.
    """

    textbook: Callable[[Tensor, int], Values]
    terms: Callable[[Tensor], Tensor]
    eager: Callable[[Tensor, int], Values]


def _logsumexp(logits: Tensor, dim: int) -> Values:
    return (logits.logsumexp(dim),)


def _sum(terms: Tensor, dim: int) -> Values:
    return (terms.sum(dim),)


FOLDS = {
    "logsumexp": FoldCase(_logsumexp, lambda logits: logits, _logsumexp),
    "softplus_sum": FoldCase(
        lambda logits, dim: (torch.logaddexp(logits, torch.zeros_like(logits)).sum(dim),),
        F.softplus,
        _sum,
    ),
    "hinge_sum": FoldCase(
        lambda logits, dim: (logits.clamp_min(0).sum(dim), (logits > 0).sum(dim)),
        F.relu,
        lambda terms, dim: (terms.sum(dim), terms.count_nonzero(dim)),
    ),
}
