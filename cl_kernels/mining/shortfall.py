"""Who came up short, and which filter removed the candidates: counted for those queries only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.csr import CSR, as_csr
from cl_kernels.mining.criteria import Criteria
from cl_kernels.pairs import PairFilter
from cl_kernels.search import TopK

_ROWS, _PAIRS = 1024, 1 << 21  # queries and pairs looked at together

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

    Args:
        queries: Which queries are short, int64 [S].
        missing: How many places of each stayed empty, [S].
        candidates: How many candidates each had before any filter, [S].
        removed: For every filter by name, how many of them it removed, [S].
        num_queries: How many queries there were in all.
    """

    queries: Tensor
    missing: Tensor
    candidates: Tensor
    removed: dict[str, Tensor]
    num_queries: int

    def __len__(self) -> int:
        return len(self.queries)

    def of(self, query: int) -> dict[str, int]:
        """What removed the candidates of one query, by filter; empty if it is not short."""
        place = (self.queries == query).nonzero().flatten()
        return {name: int(n[place]) for name, n in self.removed.items()} if len(place) else {}

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


class Tally:
    """Counts, block of pairs by block, what removed the candidates of the short queries."""

    def __init__(
        self, counts: Tensor, found: TopK, criteria: Criteria, ceilings: dict[str, Tensor]
    ) -> None:
        """From the negatives that each query got, [M], and the survivors they were chosen from."""
        self.queries = (counts < criteria.num_negatives).nonzero().flatten()
        # Were there more survivors than ``found`` has room for, the query would not be short.
        self.survivors = found.indices[self.queries]
        self.ceilings = {name: ceiling[self.queries] for name, ceiling in ceilings.items()}
        self.min_score = criteria.min_score
        self.removed = {name: torch.zeros_like(self.queries) for name in FILTERS}
        got = counts[self.queries]
        self.missing = criteria.num_negatives - got
        self.removed["rank_window"] = (self.survivors >= 0).sum(1) - got
        self.num_queries = len(counts)

    def add(self, rows: slice, scores: Tensor, survived: Tensor, **masks: Tensor) -> None:
        """Counts a block [m, n] of some of the short queries with some candidates.

        ``masks`` say which pairs other filters remove. What passed the search ``survived`` even
        if it scores otherwise here by a rounding, and what did not counts for the bound it is
        nearest to.
        """
        left = ~survived

        def count(name: str, mask: Tensor) -> None:
            nonlocal left
            self.removed[name][rows] += (left & mask).sum(1)
            left = left & ~mask

        for name, mask in masks.items():
            count(name, mask)
        count("non_finite", ~scores.isfinite())
        floor = -torch.inf if self.min_score is None else self.min_score
        ceilings = {name: ceiling[rows, None] for name, ceiling in self.ceilings.items()}
        if ceilings:
            lowest = torch.stack(list(ceilings.values())).amin(0)
            too_high = (scores > (lowest + floor) / 2) | (scores >= lowest)
            for name, ceiling in ceilings.items():
                count(name, too_high & (scores.maximum(lowest) >= ceiling))
        if self.min_score is not None:
            count("min_score", left)

    def shortfall(self, candidates: Tensor | int) -> Shortfall:
        """The result; ``candidates`` is how many each short query had, [S] if they differ."""
        candidates = torch.zeros_like(self.queries) + candidates
        return Shortfall(self.queries, self.missing, candidates, self.removed, self.num_queries)


def add_corpus(
    tally: Tally,
    query: Tensor,
    corpus: Tensor,
    positives: CSR,
    filters: tuple[PairFilter, ...],
    normalize: bool,
) -> None:
    """Counts the pairs of the short queries with the whole corpus."""
    short = tally.queries
    query, positives = query[short], positives.gather(short)
    survivors = as_csr("survivors", tally.survivors, len(short), len(corpus), short.device)
    query_ids = [f.query_ids[short, None] for f in filters]
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32

    def rows_of(x: Tensor) -> Tensor:
        x = x.to(query.device, dtype)
        return F.normalize(x) if normalize else x

    columns = _PAIRS // min(len(short), _ROWS)
    for first in range(0, len(corpus), columns):
        keys = rows_of(corpus[first : first + columns])
        last = first + len(keys)
        lists = survivors.between(first, last), positives.between(first, last)
        for top in range(0, len(short), _ROWS):
            rows = slice(top, min(top + _ROWS, len(short)))
            index = torch.arange(rows.start, rows.stop, device=short.device)
            survived, positive = (_mask(some.gather(index), len(keys)) for some in lists)
            dropped = torch.zeros_like(positive)
            for f, ids in zip(filters, query_ids, strict=True):
                same = ids[rows] == f.key_ids[first:last]
                dropped |= ~same if f.keep == "same" else same
            scores = rows_of(query[rows]) @ keys.T
            tally.add(rows, scores, survived, positive=positive, where=dropped)


def _mask(lists: CSR, columns: int) -> Tensor:
    """[rows, columns]: whether the row's list holds the column."""
    rows = lists.rows()
    mask = torch.zeros(len(lists.offsets) - 1, columns, dtype=torch.bool, device=rows.device)
    mask[rows, lists.keys] = True
    return mask
