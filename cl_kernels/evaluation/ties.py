"""What a ranking is worth whose equal scores come in any order: expectations in closed form.

McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the
Presence of Tied Scores" (2008). A group of n equal scores, r of them relevant, begins after s
better keys; all orders within a group are equally likely, and groups do not depend on each other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_TOLERATED = 0.01


def tied_share(scores: Tensor, k: int) -> float:
    """How many queries have a k-th best key whose score the next one has too, as a share.

    Which of them counts among the k best is then the corpus's order, which says nothing: above a
    hundredth there is a warning, addressed to whom the evaluation was called by.

    Args:
        scores: Falling scores, [m, d], -inf where there is no key; d > k if there are more.
    """
    if scores.shape[1] <= k:
        return 0.0
    last, following = scores[:, k - 1], scores[:, k]
    share = int(((last == following) & (last > -torch.inf)).sum()) / len(scores)
    if share > _TOLERATED:
        warnings.warn(
            f"k: neighbour {k} of {share:.0%} of the rows is as near as neighbour {k + 1}; the "
            "order of the corpus decides which one counts (are the embeddings collapsed?)",
            stacklevel=4,
        )
    return share


@dataclass(frozen=True)
class Ranking:
    """The first d ranks of m queries, each tensor [m, d].

    Attributes:
        gain: The probability that the key at a rank is relevant.
        miss: The probability that it is not, where no key before it is.
        precision: The expectation of (relevant at the rank) * (relevant up to the rank) / rank.
        settled: Whether the whole group of the rank lies within the d ranks.
    """

    gain: Tensor
    miss: Tensor
    precision: Tensor
    settled: Tensor

    def found(self) -> Tensor:
        """How many relevant keys the settled groups have, [m]."""
        return (self.gain * self.settled).sum(1).round()

    @classmethod
    def of(cls, scores: Tensor, relevant: Tensor, dtype: torch.dtype, whole: bool) -> Ranking:
        """The expectations for falling scores [m, d] and which of their keys are relevant.

        Args:
            dtype: Of the expectations.
            whole: Whether there are no more keys; there are none after a score of -inf either.
        """
        gain = relevant.to(dtype)
        found = gain.cumsum(1)
        rank = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        precision = gain * found / rank
        miss = 1 - gain
        last = scores[:, -1:]
        settled = (scores > last) | (last == -torch.inf) | whole
        tied = _Tied.among(scores, gain, found)
        if tied is not None:
            gain[tied.at], miss[tied.at], precision[tied.at] = tied.expected()
        return cls(gain, miss, precision, settled)


@dataclass(frozen=True)
class _Tied:
    """The ranks whose score another rank has too, tensors [t]; mostly there are few."""

    at: tuple[Tensor, Tensor]  # row, column
    place: Tensor  # within the group
    size: Tensor
    relevant: Tensor  # of the group
    before: Tensor  # relevant before the group

    @classmethod
    def among(cls, scores: Tensor, hits: Tensor, found: Tensor) -> _Tied | None:
        follows = F.pad(scores[:, 1:] == scores[:, :-1], (1, 0))
        row, column = (follows | F.pad(follows[:, 1:], (0, 1))).nonzero(as_tuple=True)
        if len(row) == 0:
            return None
        first = ~follows[row, column]
        group = first.cumsum(0) - 1
        size, start = group.bincount()[group], column[first][group]
        before = found[row, start] - hits[row, start]
        relevant = found[row, start + size - 1] - before
        return cls((row, column), column - start, size, relevant, before)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gain, miss and precision."""
        gain = self.relevant / self.size
        left = self.size - self.place
        miss = (left - self.relevant).clamp_min(0) / left
        # Two keys of a group are relevant with probability r (r - 1) / (n (n - 1)).
        others = self.place * (self.relevant - 1) / (self.size - 1)
        return gain, miss, gain * (self.before + 1 + others) / (self.at[1] + 1)
