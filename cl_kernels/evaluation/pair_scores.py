"""Thresholds on the scores of very many pairs, exact and in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 1024  # rows and columns of a tile of scores
_DIGIT = 16  # bits of a score that one visit of all pairs decides
_BUCKETS = 1 << _DIGIT


class Pairs(NamedTuple):
    """Scores of some pairs [n], and which are of the same identity ([n], or 0-d for all)."""

    scores: Tensor
    genuine: Tensor


class Operating(NamedTuple):
    """A threshold, the impostors with this score or more, and the genuine pairs with less."""

    threshold: float
    accepted: int
    rejected: int


Source = Callable[[], Iterator[Pairs]]
Condition = Callable[[Tensor, Tensor], Tensor]  # (accepted, rejected) -> bool


def pairs_within(embeddings: Tensor, labels: Tensor, normalize: bool) -> Source:
    """All pairs i < j of labelled embeddings [N, D], a tile of scores at a time."""

    def part(first: int) -> tuple[Tensor, Tensor]:
        x = embeddings[first : first + _TILE].detach()
        x = x if x.dtype == torch.float64 else x.float()
        return F.normalize(x) if normalize else x, labels[first : first + _TILE]

    def tiles() -> Iterator[Pairs]:
        for first in range(0, len(embeddings), _TILE):
            rows, of_rows = part(first)
            for other in range(first, len(embeddings), _TILE):
                cols, of_cols = part(other)
                scores = rows @ cols.T
                same = of_rows[:, None] == of_cols
                if other == first:
                    upper = torch.ones_like(same).triu(1)
                    scores, same = scores[upper], same[upper]
                yield Pairs(scores.flatten(), same.flatten())

    return tiles


def thresholds(
    pairs: Source, dtype: torch.dtype, conditions: list[Condition]
) -> list[tuple[Operating, Operating]]:
    """For each condition, the highest threshold that fails it and the next number, which meets it.

    A condition on the errors must fail at -inf, hold at inf, and go on to hold once it does. The
    search is a radix selection: scores are counted by their leading bits, then those that share
    them with the threshold by the next ones. It visits all pairs (bits of dtype / 16) times.
    """
    edges = [0] * len(conditions)
    bases = [-(_BUCKETS // 2)] * len(conditions)  # lowest of the leading bits still in question
    errors = {}
    for shift in range(torch.finfo(dtype).bits - _DIGIT, -1, -_DIGIT):
        errors = _errors(pairs, shift, set(bases))
        for n, (base, holds) in enumerate(zip(bases, conditions, strict=True)):
            edges[n] = int(holds(*errors[base]).int().argmax())  # the lowest that meets it
        if shift > 0:
            bases = [(b + e - 1) << _DIGIT for b, e in zip(bases, edges, strict=True)]

    def operating(base: int, edge: int) -> Operating:
        accepted, rejected = errors[base]
        return Operating(_score(base + edge, dtype), int(accepted[edge]), int(rejected[edge]))

    return [(operating(b, e - 1), operating(b, e)) for b, e in zip(bases, edges, strict=True)]


def _errors(pairs: Source, shift: int, bases: set[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """For each base, the errors of the thresholds with leading bits ``base + 0, 1, ...``.

    Returns:
        Impostors accepted and genuine pairs rejected, each int64 [_BUCKETS + 1].
    """
    # One bucket more for what lies below all thresholds, one for what lies above.
    size = _BUCKETS + 2
    counts = {base: torch.zeros(2 * size, dtype=torch.int64, device="cpu") for base in bases}
    for scores, genuine in pairs():
        leading = _sortable(scores) >> shift
        offset = genuine.to(leading.dtype) * size
        for base in bases:
            bucket = leading.clamp(base - 1, base + _BUCKETS).sub_(base - 1).add_(offset)
            counts[base] += torch.bincount(bucket, minlength=2 * size).cpu()
    errors = {}
    for base, count in counts.items():
        impostors_below, genuine_below = count.view(2, size).cumsum(1)[:, :-1]
        errors[base] = count[:size].sum() - impostors_below, genuine_below
    return errors


def _sortable(scores: Tensor) -> Tensor:
    """Integers of the scores' width in the order of the scores; -0 counts as 0."""
    integer = torch.int32 if scores.dtype == torch.float32 else torch.int64
    return _mirrored((scores + 0.0).view(integer))


def _score(sortable: int, dtype: torch.dtype) -> float:
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    return _mirrored(torch.tensor([sortable], dtype=integer, device="cpu")).view(dtype).item()


def _mirrored(bits: Tensor) -> Tensor:
    """Negative floats rise as their bits fall: turns these bits around, or back."""
    info = torch.iinfo(bits.dtype)
    return bits ^ ((bits >> (info.bits - 1)) & info.max)  # torch.where takes ten times as long
