"""Who came up short, and which filter removed the candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Removed = dict[str, Tensor] | Callable[[], dict[str, Tensor]]

FILTERS = (
    "positive",
    "where",
    "non_finite",
    "max_score",
    "absolute_margin",
    "relative_margin",
    "min_score",
    "rank_window",
)


@dataclass(frozen=True)
class Shortfall:
    """The queries that got fewer negatives than asked for, and why.

    A candidate is counted once, under the first filter of this order that removes it: positives,
    ``where``, scores that are not finite, ``max_score``, ``absolute_margin``, ``relative_margin``,
    ``min_score``, and the ranks below ``range_min``. A query's counts and the negatives it got
    add up to its candidates.

    Who is short is known at once. Where several bounds on scores compete, what each of them removed
    takes a pass over the corpus, made when ``removed``, ``of`` or the text is first asked for:
    until then (or until the result is pickled) query and corpus are held, and must stay unchanged.

    Args:
        queries: Which queries are short, int64 [S].
        missing: How many places of each stayed empty, [S].
        candidates: How many candidates each had before any filter, [S].
        num_queries: How many queries there were in all.
    """

    queries: Tensor
    missing: Tensor
    candidates: Tensor
    num_queries: int
    _removed: Removed = field(repr=False)

    @property
    def removed(self) -> dict[str, Tensor]:
        """For every filter by name, how many candidates of each query it removed, [S].

        Raises:
            RuntimeError: It was not counted before query or corpus were changed in place.
        """
        if not isinstance(self._removed, dict):
            object.__setattr__(self, "_removed", self._removed())
        assert isinstance(self._removed, dict)
        return self._removed

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_removed": self.removed}

    def __len__(self) -> int:
        return len(self.queries)

    def of(self, query: int) -> dict[str, int]:
        """What removed the candidates of one query, by filter; empty if it is not short."""
        place = (self.queries == query).nonzero().flatten()
        return {name: int(n[place]) for name, n in self.removed.items()} if len(place) else {}

    def of_queries(self, part: slice) -> Shortfall:
        """That of some of the queries, which are counted from the first of them."""
        some = (self.queries >= part.start) & (self.queries < part.stop)
        return Shortfall(
            self.queries[some] - part.start,
            self.missing[some],
            self.candidates[some],
            part.stop - part.start,
            {name: removed[some] for name, removed in self.removed.items()},
        )

    def __str__(self) -> str:
        if not len(self):
            return f"none of {self.num_queries:,} queries is short"
        total = max(1, int(self.candidates.sum()))
        lines = [
            f"{len(self):,} of {self.num_queries:,} queries are short "
            f"({len(self) / self.num_queries:.2%}), {int(self.missing.sum()):,} negatives missing; "
            f"of their {int(self.candidates.sum()):,} candidates"
        ]
        for name, counts in self.removed.items():
            if count := int(counts.sum()):
                lines.append(f"  {name:<15} removed {count:>14,} ({count / total:.2%})")
        return "\n".join(lines)
