"""All pairs whose similarity is above a threshold, by searches for more and more keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._precision import accumulator
from cl_kernels.checks import Bound, as_bound, check_count, check_embeddings, check_filters
from cl_kernels.csr import CSR, Lists, left_out
from cl_kernels.pairs import MAX_FILTERS, PairFilter, Where
from cl_kernels.ranks.agreement import together
from cl_kernels.ranks.group import Group, Ranks
from cl_kernels.statistics.functions import row_hinge_sum

from .topk import as_tensor, topk

if TYPE_CHECKING:
    import numpy

_FIRST, _GROWTH = 16, 16  # keys that are looked for, and how many times more if all were found
_MOST_KEYS = 1 << 31
_HELD = 1 << 24  # results that are held at once beside those that are kept
# Of queries, each of which meets the rows after its first: so many at most, so large at least.
_BLOCKS, _LEAST_ROWS = 8, 512


class InRange(NamedTuple):
    """The keys in range of each query, best first; equal scores in the order of the keys.

    Args:
        keys: Their indices, a ``CSR``: offsets [M + 1], keys [pairs].
        scores: [pairs], float32 (float64 for float64 embeddings).
    """

    keys: CSR
    scores: Tensor


def range_search(
    query: Tensor | numpy.ndarray,
    key: Tensor | numpy.ndarray | None = None,
    *,
    above: float | Tensor,
    below: Bound = None,
    normalize: bool = True,
    where: Where = (),
    exclude: Lists | None = None,
    max_pairs: int = 1 << 26,
    group: Group | None = None,
    backend: str | None = None,
) -> InRange:
    """The keys whose similarity to a query is above a threshold: exact, never M x N.

    Scores, and with them the pairs, are those of ``topk``, bit for bit (but of the ``reference``
    backend, whose last bits depend on the batch): few keys of each query are searched, then more of
    those queries that found so many. Where few pairs pass it takes the time of one search; a query
    that nearly all keys pass takes that of sorting them.

    Args:
        query: Embeddings, shape [M, D]. float32, float16, bfloat16 or float64.
        key: Embeddings, shape [N, D]; also streamed from host memory, as ``topk`` takes them.
            Default: the queries. Then each pair of two rows is found once, by the first.
        above: Keep scores strictly above this: a number, or one for each query, [M].
        below: Keep scores strictly below this as well.
        normalize: Score by cosine; else by inner product.
        where: Up to three ``PairFilter``.
        exclude: Keys to leave out for each query, as ``topk`` takes them.
        max_pairs: The most pairs that are kept. 2^26 take 0.8 GB, and four times that while they
            are put in order.
        group: Of torch.distributed: ``key`` is this rank's shard of all ranks' keys; see ``topk``.
        backend: Which backend serves the searches.

    Returns:
        ``InRange(keys, scores)``. No gradient flows to them.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came; of
            more pairs than ``max_pairs`` it says how many there are, to rounding.

    Example::

        (offsets, keys), scores = range_search(queries, corpus, above=0.8)
        of_first = keys[offsets[0] : offsets[1]]

        pairs, _ = range_search(corpus, above=0.95)  # each once
        first, second = pairs.rows(), pairs.keys
    """
    ranks = None if group is None else Ranks(group)
    asked = query, key, above, below, normalize, where, exclude, max_pairs
    if ranks is None:
        call = _Call.checked(*asked)
    else:
        device = query.device if isinstance(query, Tensor) else torch.device("cpu")
        call = together(ranks, "range_search", lambda: _Call.checked(*asked, shard=True), device)
    settings = {"normalize": normalize, "group": group, "backend": backend}
    kept = _Kept(len(call.queries), max_pairs)
    if call.key is not None:
        call.search(kept, settings, ranks)
    else:
        for start, part in call.blocks():
            part.search(kept.of_later_rows(start), settings, None)
            if kept.full:
                break
    if kept.full and ranks is None:  # to search for all of them would take long
        kept.counted = call.counted(normalize, kept.count)
    return kept.result(call.queries)


class _Kept:
    """What was found so far; over the limit it is only counted.

    Args:
        queries: How many there are.
        most: How many pairs may be kept.
    """

    def __init__(self, queries: int, most: int):
        self.queries, self.most, self.count, self.start = queries, most, 0, None
        self.counted: str | None = None  # where not all were searched for
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def of_later_rows(self, start: int) -> _Kept:
        """Itself, for rows and keys that are counted from ``start``: those of later rows count."""
        self.start = start
        return self

    def add(self, rows: Tensor, keys: Tensor, scores: Tensor) -> None:
        if self.start is not None:
            later = keys > rows
            rows, keys, scores = rows[later] + self.start, keys[later] + self.start, scores[later]
        self.count += rows.shape[0]
        self.found = [] if self.full else [*self.found, (rows, keys, scores)]

    @property
    def full(self) -> bool:
        return self.count > self.most

    def in_words(self) -> str:
        return f"at least {self.count}" if self.counted is None else self.counted

    def result(self, queries: Tensor) -> InRange:
        if self.full:
            raise ValueError(
                f"max_pairs: expected {self.in_words()}, so many are in range, got {self.most}; "
                "or a higher threshold, above"
            )
        nothing = torch.empty(0, dtype=torch.int64, device=queries.device)
        none = nothing, nothing, queries.new_empty(0, dtype=accumulator(queries))
        rows, keys, scores = (torch.cat(x) for x in zip(none, *self.found, strict=True))
        rows, order = rows.sort(stable=True)
        bounds = torch.arange(self.queries + 1, device=queries.device)
        return InRange(CSR(torch.searchsorted(rows, bounds), keys[order]), scores[order])


class _Call(NamedTuple):
    """What is asked for, checked.

    Args:
        queries: [M, D].
        key: [n, D]; None: the queries.
        bounds: Of the scores, by name.
        filters: On the pairs.
        exclude: Which keys of each query are left out.
    """

    queries: Tensor
    key: Any
    bounds: dict[str, Tensor | None]
    filters: tuple[PairFilter, ...]
    exclude: CSR | None

    @classmethod
    def checked(
        cls, query, key, above, below, normalize, where, exclude, max_pairs, *, shard=False
    ) -> _Call:
        queries: Any = as_tensor(query, "query")
        keys: Any = None if key is None else as_tensor(key)
        check_embeddings("query", queries)
        check_flag("normalize", normalize)
        check_count("max_pairs", max_pairs)
        if shard and keys is None:
            raise ValueError("key: expected this rank's keys with a group, got None")
        if keys is not None and getattr(keys, "ndim", 0) != 2:
            got = list(keys.shape) if hasattr(keys, "shape") else type(key).__name__
            raise ValueError(f"key: expected embeddings [N, D], got {got}")
        keys = keys.detach() if isinstance(keys, Tensor) else keys
        queries = queries.detach()
        if above is None:
            raise TypeError("above: expected a number or a tensor, got None")
        given = ("above", above), ("below", below)
        bounds = {name: as_bound(name, bound, queries) for name, bound in given}
        M, N = len(queries), len(queries if keys is None else keys)
        filters = check_filters(where, (M, N), queries.device)
        if exclude is not None:  # of the keys of all ranks, which topk counts
            of_all = _MOST_KEYS if shard else N
            lists = left_out("exclude", exclude, M, of_all, queries.device)
            exclude = lists.between(0, of_all)  # without padding
        return cls(queries, keys, bounds, filters, exclude)

    def blocks(self) -> Iterator[tuple[int, _Call]]:
        """Some of the rows at a time, with the rows from their first on."""
        M, size = len(self.queries), max(-(-len(self.queries) // _BLOCKS), _LEAST_ROWS)
        for start in range(0, M, size):
            rows, rest = slice(start, start + size), slice(start, M)
            bounds = {name: None if x is None else x[rows] for name, x in self.bounds.items()}
            filters = tuple(
                PairFilter(f.query_ids[rows], f.key_ids[rest], f.keep) for f in self.filters
            )
            lists = self.exclude
            if lists is not None:
                index = torch.arange(M, device=self.queries.device)[rows]
                lists = lists.gather(index).between(start, M)
            yield start, _Call(self.queries[rows], self.queries[rest], bounds, filters, lists)

    def search(self, kept: _Kept, settings: dict[str, Any], ranks: Ranks | None) -> None:
        """Adds what is found. A query that finds as many keys as it looks for is asked again."""
        device, N = self.queries.device, len(self.key)
        if ranks is not None:
            N = int(ranks.sum(torch.tensor(N, device=device)))
        rows, k = torch.arange(len(self.queries), device=device), min(_FIRST, max(N, 1))
        while True:
            again = [rows[:0]]
            for part in _parts(rows, max(1, _HELD // k), ranks):
                found = topk(self.queries[part], self.key, k, **self.options(part), **settings)
                full = (found.indices[:, -1] >= 0) & (k < N)
                filled = (found.indices >= 0) & ~full[:, None]
                of_row = part[:, None].expand_as(filled)[filled]
                kept.add(of_row, found.indices[filled], found.values[filled])
                again.append(part[full])
                if kept.full and ranks is None:
                    return
            rows = torch.cat(again)
            left = torch.tensor(len(rows), device=device)
            if not int(left if ranks is None else ranks.sum(left)):
                return
            k = min(k * _GROWTH, N)

    def counted(self, normalize: bool, found: int) -> str:
        """How many pairs are in range, to rounding, in words."""
        itself, filters = self.key is None, list(self.filters)
        keys, below, above = self.queries if itself else self.key, *self._limits()
        here = isinstance(keys, Tensor) and keys.device == self.queries.device
        if itself:
            index = torch.arange(len(keys), device=keys.device)
            filters.append(PairFilter(index, index, "different"))
        if not here or self.exclude is not None or len(filters) > MAX_FILTERS:
            return f"more than {found}"
        options: Any = {"where": filters, "below": below, "normalize": normalize}
        with torch.no_grad():  # logits above 0 are scores above the threshold
            active = row_hinge_sum(self.queries, keys, query_bias=-above, **options).active
        count = int(active.sum())
        return f"at least about {count // 2 if itself else count}"

    def _limits(self) -> tuple[Tensor | None, Tensor]:
        above = self.bounds["above"]
        assert above is not None
        largest = torch.finfo(above.dtype).max
        return self.bounds["below"], above.clamp(-largest, largest)

    def options(self, rows: Tensor) -> dict[str, Any]:
        """Of some of the queries, as ``topk`` takes them."""
        where = [PairFilter(f.query_ids[rows], f.key_ids, f.keep) for f in self.filters]
        bounds = {name: None if x is None else x[rows] for name, x in self.bounds.items()}
        exclude = None if self.exclude is None else self.exclude.gather(rows)
        return {"where": where, "exclude": exclude, **bounds}


def _parts(rows: Tensor, size: int, ranks: Ranks | None) -> Iterator[Tensor]:
    """So many rows at a time; every rank makes as many searches."""
    count = -(-len(rows) // size)
    if ranks is not None:
        count = int(ranks.all(torch.tensor(count, device=rows.device)).max())
    return (rows[i * size : (i + 1) * size] for i in range(count))
