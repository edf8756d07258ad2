"""The table of statistics, from which their schemas, fakes, gradients and costs come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._ops import new_like


class Fold(NamedTuple):
    """What is made of the logits of a row (or of a column), one tile at a time.

    Args:
        name: Of the statistic, without its sides.
        union: The value over two sets of pairs from those over each.
        of_none: The value over no pair.
        counts: Whether pairs are counted too: a second value, int64, without gradient.
        weighted_key: Whether the backends can sum the keys with the weights of the pairs in the
            same visit, which is the query's gradient where only the query is trained.
    """

    name: str
    union: Callable[[Tensor, Tensor], Tensor]
    of_none: float = 0.0
    counts: bool = False
    weighted_key: bool = False

    def new_values(self, like: Tensor, count: int) -> tuple[Tensor, ...]:
        """The values of so many rows, uninitialised."""
        counts = (like.new_empty(count, dtype=torch.int64),) if self.counts else ()
        return new_like(like, count), *counts


class Statistic(NamedTuple):
    """A fold on one side of the matrix, or on both.

    Args:
        sides: "row" (over the keys of each query), "row_col" (the columns too, in the same visit)
            or "self" (the rows of a matrix with itself, of which half is visited).
        fold: What is made of the logits.
    """

    sides: str
    fold: Fold

    @property
    def name(self) -> str:
        return f"{self.sides}_{self.fold.name}"

    @property
    def of_one(self) -> bool:
        """Of one set of embeddings with itself: there are no keys."""
        return self.sides == "self"

    @property
    def directions(self) -> int:
        """Values for each pair of rows that belong together: of matching pairs, or of two views."""
        return 1 if self.sides == "row" else 2

    @property
    def has_weighted_key(self) -> bool:
        return self.sides == "row" and self.fold.weighted_key

    def new_values(self, query: Tensor, key: Tensor | None) -> tuple[Tensor, ...]:
        """Values of the rows [M], then of the columns [N], uninitialised."""
        sides = (query, key) if self.sides == "row_col" else (query,)
        sizes = (x.shape[0] for x in sides if x is not None)
        return tuple(value for size in sizes for value in self.fold.new_values(query, size))

    def differentiable(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of the values, those that have a gradient: one of each side."""
        return values[::2] if self.fold.counts else values

    def from_zeros(self, row: Tensor, col: Tensor) -> tuple[Tensor, ...]:
        """Values that are zero, from zeros [M] and [N]."""
        sides = (row, col) if self.sides == "row_col" else (row,)
        return tuple(
            x for side in sides for x in ((side, side.long()) if self.fold.counts else (side,))
        )


FOLDS = (
    Fold("logsumexp", torch.logaddexp, -inf, weighted_key=True),
    Fold("softplus_sum", torch.add),
    Fold("hinge_sum", torch.add, counts=True),
)
SIDES = ("row", "row_col", "self")
STATISTICS = {s.name: s for fold in FOLDS for s in (Statistic(side, fold) for side in SIDES)}
