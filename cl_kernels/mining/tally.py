"""What removed the candidates of the queries that came up short, counted for those only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels.csr import CSR, as_csr
from cl_kernels.mining.criteria import Criteria
from cl_kernels.mining.shortfall import FILTERS, Removed, Shortfall
from cl_kernels.mining.where import count_dropped, dropped
from cl_kernels.pairs import PairFilter
from cl_kernels.search import TopK
from cl_kernels.search.shards import ShardedKeys
from cl_kernels.search.stream import blocks

_ROWS, _COLUMNS = 1024, 2048  # queries and candidates looked at together


class Tally:
    """Counts of the short queries, by filter.

    A score is counted under the first bound that it breaks. Ceilings are therefore replaced by
    their running minimum: what lies at or above it, but not above the one before, is the bound's.
    """

    def __init__(
        self, counts: Tensor, found: TopK, criteria: Criteria, ceilings: dict[str, Tensor]
    ) -> None:
        """From the negatives that each query got, [M], and the survivors they were chosen from."""
        self.queries = (counts < criteria.num_negatives).nonzero().flatten()
        # Were there more survivors than ``found`` has room for, the query would not be short.
        self.survivors = found.indices[self.queries]
        self.got = counts[self.queries]
        self.missing = criteria.num_negatives - self.got
        self.num_queries = len(counts)
        self.bounds = list(ceilings)
        self.floors = _floors([c[self.queries] for c in ceilings.values()], criteria.min_score)
        if criteria.min_score is not None:  # removes whatever no ceiling does
            self.bounds.append("min_score")
            self.floors.append(found.values.new_full(self.queries.shape, -torch.inf))

    def begin(self) -> None:
        """Forgets what an interrupted count left."""
        self.removed = {name: torch.zeros_like(self.queries) for name in FILTERS}
        self.removed["rank_window"] += (self.survivors >= 0).sum(1) - self.got

    def add(self, rows: slice, scores: Tensor, bounds: list[str]) -> None:
        """Counts a block [m, n] of some of the short queries with some candidates by ``bounds``.

        Scores are NaN where the pair survived, was removed already or has no finite score.
        """
        before = torch.zeros_like(self.queries[rows])
        for name, floor in zip(bounds, self.floors, strict=False):
            above = (scores >= floor[rows, None]).sum(1, dtype=torch.int32)
            self.removed[name][rows] += above - before
            before = above

    def rest(self, name: str, candidates: Tensor | int) -> None:
        """Lays all that nothing accounts for yet of so many candidates on one filter."""
        counted = self.got + sum(self.removed.values())
        self.removed[name] += candidates - counted

    def shortfall(self, candidates: Tensor | int, removed: Removed) -> Shortfall:
        """The result; ``candidates`` is how many each short query had, [S] if they differ."""
        candidates = torch.zeros_like(self.queries) + candidates
        return Shortfall(self.queries, self.missing, candidates, self.num_queries, removed)


class CorpusTally:
    """Counts the pairs of the short queries with the whole corpus [N, D] when it is called.

    Positives and filters are counted without a look at the pairs, and so is the last bound: it
    removed all that is left. Only where bounds compete, or a score may not be finite, are scores
    computed again. Of a corpus in shards each rank counts its own.
    """

    def __init__(
        self,
        tally: Tally,
        query: Tensor,
        corpus: Tensor | ShardedKeys,
        positives: CSR,
        filters: tuple[PairFilter, ...],
        normalize: bool,
    ) -> None:
        self.tally = tally
        self.shards = corpus if isinstance(corpus, ShardedKeys) else None
        self.corpus: Tensor = corpus.key if isinstance(corpus, ShardedKeys) else corpus
        self.query, self.normalize, self.num_documents = query, normalize, len(corpus)
        self.positives, self.filters = positives, filters
        self._versions = self._current()
        self._finite: bool | None = None

    def removed(self) -> Removed:
        """The counts where they cost little beside the search, else what counts when called: not
        of shards, as all ranks would have to ask for it together."""
        if self.shards is not None:
            return self()
        cheap = len(self.tally.queries) == 0 or (len(self.tally.bounds) < 2 and self._is_finite())
        return self() if cheap else self

    @torch.no_grad()
    def __call__(self) -> dict[str, Tensor]:
        """The counts by filter.

        Raises:
            RuntimeError: The embeddings are no longer those that were mined.
        """
        if self._current() != self._versions:
            raise RuntimeError(
                "shortfall: expected query and corpus as they were mined to count what removed "
                "the candidates, got changed ones; ask for shortfall.removed before changing them"
            )
        tally, queries, N = self.tally, self.tally.queries, len(self.corpus)
        tally.begin()
        if len(queries) == 0:
            return tally.removed
        known = _unique(self._here(self.positives.gather(queries)), N)
        rows = known.rows()
        twice = dropped(self.filters, queries[rows], known.keys).expand_as(rows)
        tally.removed["positive"] += known.counts()
        tally.removed["where"] += count_dropped(self.filters, queries, N)
        tally.removed["where"] -= rows[twice].bincount(minlength=len(queries))
        finite = self._is_finite()
        if bounds := tally.bounds[:-1] if finite else tally.bounds:
            with torch.autocast(queries.device.type, enabled=False):  # as in the search
                self._compare(known, bounds, finite)
        if self.shards is not None:
            of_documents = (name for name in FILTERS if name != "rank_window")
            tally.removed |= {n: self.shards.ranks.sum(tally.removed[n]) for n in of_documents}
        last = tally.bounds[-1] if finite and tally.bounds else "non_finite"
        tally.rest(last, self.num_documents)
        return tally.removed

    def _current(self) -> list[int | None]:
        """Grows with every change in place that torch sees."""
        return [None if x.is_inference() else x._version for x in (self.query, self.corpus)]

    def _is_finite(self) -> bool:
        """Whether no inner product can be NaN or overflow: told by the lengths of the rows."""
        if self._finite is None:
            parts = (block for _, block in blocks(self.corpus, self.query.device))
            longest = _longest([self.query[self.tally.queries]]) * _longest(parts)
            if self.shards is not None:
                longest = self.shards.ranks.all(longest).amax()
            self._finite = bool(longest.isfinite())
        return self._finite

    def _compare(self, known: CSR, bounds: list[str], finite: bool) -> None:
        """Computes the scores, block by block."""
        count = len(self.tally.queries)
        survivors = self.tally.survivors
        found = self._here(as_csr("found", survivors, count, self.num_documents, self.query.device))
        for begin, block in blocks(self.corpus, self.query.device):
            for first in range(0, len(block), _COLUMNS):
                keys = self._rows(block[first : first + _COLUMNS])
                columns = slice(begin + first, begin + first + len(keys))
                settled = [x.between(columns.start, columns.stop) for x in (known, found)]
                for top in range(0, count, _ROWS):
                    rows = slice(top, min(top + _ROWS, count))
                    scores = self._open_scores(rows, columns, keys, settled)
                    if not finite:
                        scores.masked_fill_(scores.isinf(), torch.nan)
                    self.tally.add(rows, scores, bounds)

    def _open_scores(self, rows: slice, columns: slice, keys: Tensor, settled: list[CSR]) -> Tensor:
        """Scores of a block [m, n], NaN where no bound removed the pair."""
        queries = self.tally.queries[rows]
        scores = self._rows(self.query[queries]) @ keys.T
        if self.filters:
            scores.masked_fill_(dropped(self.filters, queries[:, None], columns), torch.nan)
        index = torch.arange(rows.start, rows.stop, device=queries.device)
        for lists in (x.gather(index) for x in settled):
            scores[lists.rows(), lists.keys] = torch.nan
        return scores

    def _here(self, lists: CSR) -> CSR:
        return lists if self.shards is None else self.shards.lists(lists)

    def _rows(self, x: Tensor) -> Tensor:
        x = x.to(accumulator(x))
        return F.normalize(x) if self.normalize else x


def _floors(ceilings: list[Tensor], min_score: float | None) -> list[Tensor]:
    """For each bound [S], in order, from which score on it or one before it removes a pair.

    What did not survive and scores between the lowest ceiling and ``min_score``, by a rounding,
    counts for the one that it is nearest to.
    """
    running: list[Tensor] = []
    for ceiling in ceilings:
        running.append(torch.minimum(running[-1], ceiling) if running else ceiling)
    if running:
        lowest = running[-1]
        middle = (lowest + (-torch.inf if min_score is None else min_score)) / 2
        beyond = torch.minimum(lowest, middle.nextafter(torch.full_like(middle, torch.inf)))
        running = [torch.where(x == lowest, beyond, x) for x in running]
    return running


def _longest(parts: Iterable[Tensor]) -> Tensor:
    """The length of the longest row; NaN if there is a NaN."""
    lengths = [torch.linalg.vector_norm(x, dim=1, dtype=accumulator(x)) for x in parts if len(x)]
    return torch.cat(lengths).amax() if lengths else torch.zeros(())


def _unique(lists: CSR, num_keys: int) -> CSR:
    """The same lists in rising order, without repetitions."""
    codes = (lists.rows() * num_keys + lists.keys).unique()
    starts = torch.arange(len(lists.offsets), device=codes.device) * num_keys
    return CSR(torch.searchsorted(codes, starts), codes % max(1, num_keys))
