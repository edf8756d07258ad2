"""The table of statistics, from which their schemas, fakes, gradients and costs come."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from cl_kernels._ops import new_like


class Fold(NamedTuple):
    """What is made of the logits of a row (or of a column), one tile at a time.

    Args:
        name: Of the statistic, without its sides.
        weighted_key: Whether the backends can sum the keys with the weights of the pairs in the
            same visit, which is the query's gradient where only the query is trained.
    """

    name: str
    weighted_key: bool = False


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

    def empty_values(self, query: Tensor, key: Tensor | None) -> tuple[Tensor, ...]:
        """Values of each side, uninitialised: those of the rows, [M], then of columns, [N]."""
        sides = (query, key) if self.sides == "row_col" else (query,)
        return tuple(new_like(query, x.shape[0]) for x in sides if x is not None)


FOLDS = (Fold("logsumexp", weighted_key=True),)
SIDES = ("row", "row_col", "self")
STATISTICS = {s.name: s for fold in FOLDS for s in (Statistic(side, fold) for side in SIDES)}
