"""A statistic of embeddings that every process has: each process visits some of the tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels._spread import Spread
from cl_kernels.calls import Call
from cl_kernels.pairs import Pairs
from cl_kernels.ranks.group import Ranks
from cl_kernels.statistics.operations import Gradients, backward, forward, weighted_key
from cl_kernels.statistics.table import STATISTICS, Fold, Statistic


class Divided(Spread):
    """Values are those of all pairs, on every rank. A gradient is that of this rank's tiles, times
    the number of ranks: their mean, which DDP takes, is the whole gradient."""

    ranks: Ranks

    @classmethod
    def of(cls, backend: str, ranks: Ranks) -> Divided:
        divided = cls(backend)
        divided.ranks = ranks
        return divided

    def forward(self, statistic, query, key, scale, call):
        sizes = _sizes(query, key)
        sides = _of_no_pair(statistic, query, sizes)
        for block in _blocks(statistic, sizes, call.pairs, self.ranks):
            found = forward(
                block.statistic, str(self), *block.of(query, key), scale, block.cut(call)
            )
            for (side, place), values in zip(block.places, _by_side(block, found), strict=True):
                whole, *counts = sides[side]
                whole[place] = statistic.fold.union(whole[place], values[0])
                for count, more in zip(counts, values[1:], strict=True):
                    count[place] += more
        return tuple(x for side in sides for x in self._of_all_ranks(statistic.fold, *side))

    def _of_all_ranks(self, fold: Fold, value: Tensor, *counts: Tensor) -> Iterator[Tensor]:
        yield self.ranks.logsumexp(value) if fold.of_none else self.ranks.sum(value)
        yield from map(self.ranks.sum, counts)

    def weighted_key(self, statistic, query, key, scale, call):
        ((value,),) = _of_no_pair(statistic, query, _sizes(query, key))
        weighted = query.new_zeros(query.shape, dtype=value.dtype)
        for block in _blocks(statistic, _sizes(query, key), call.pairs, self.ranks):
            given = query[block.rows], key[block.columns], scale, block.cut(call)
            found = weighted_key(block.statistic, str(self), *given)
            value[block.rows], weighted[block.rows] = found
        return self.ranks.logsumexp(value), weighted.mul_(self.ranks.size)

    def backward(self, statistic, grads, values, query, key, scale, call, needs):
        sizes, sums = _sizes(query, key), _zeros(query, key, needs)
        for block in _blocks(statistic, sizes, call.pairs, self.ranks):
            of_grads, of_values = (
                [x[side][place] for side, place in block.places] for x in (grads, values)
            )
            given = *block.of(query, key), scale, block.cut(call), block.needs(needs)
            block.add(backward(block.statistic, str(self), of_grads, of_values, *given), sums)
        return Gradients(*(x.mul_(self.ranks.size) for x in sums))


class _Block(NamedTuple):
    """The tiles of a rectangle.

    Args:
        whole: The statistic that they are visited for.
        statistic: Whose values they have: of a matrix with itself, whose pairs count in their row
            and their column, of the rows and the columns.
    """

    whole: Statistic
    statistic: Statistic
    rows: slice
    columns: slice

    @property
    def places(self) -> list[tuple[int, slice]]:
        """Which of the whole's values it has, by side of the block."""
        of_rows, of_columns = (0, self.rows), (0 if self.whole.of_one else 1, self.columns)
        return [of_rows, of_columns] if self.statistic.sides == "row_col" else [of_rows]

    def of(self, query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
        key = query if key is None else key
        return query[self.rows], None if self.statistic.of_one else key[self.columns]

    def cut(self, call: Call) -> Call:
        return call._replace(pairs=call.pairs.of_queries(self.rows).of_keys(self.columns))

    def needs(self, needs: Sequence[bool]) -> list[bool]:
        query, key, *biases = needs
        if self.whole.of_one:
            key = query and not self.statistic.of_one
        return [query, key, *biases]

    def add(self, found: Gradients, sums: Gradients) -> None:
        of_key = sums.query if self.whole.of_one else sums.key
        sums.scale.add_(found.scale)
        for whole, place, part in (
            (sums.query, self.rows, found.query),
            (of_key, self.columns, found.key),
            (sums.query_bias, self.rows, found.query_bias),
            (sums.key_bias, self.columns, found.key_bias),
        ):
            if part.numel():
                whole[place] += part


def _sizes(query: Tensor, key: Tensor | None) -> tuple[int, int]:
    return query.shape[0], (query if key is None else key).shape[0]


def _of_no_pair(
    statistic: Statistic, query: Tensor, sizes: Sequence[int]
) -> list[Sequence[Tensor]]:
    """The values of each side before any tile."""
    sides = [statistic.fold.new_values(query, size) for size in sizes]
    for value, *counts in sides:
        value.fill_(statistic.fold.of_none)
        for count in counts:
            count.zero_()
    return list(sides if statistic.sides == "row_col" else sides[:1])


def _by_side(block: _Block, values: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    each = len(values) // len(block.places)
    return [values[i : i + each] for i in range(0, len(values), each)]


def _zeros(query: Tensor, key: Tensor | None, needs: Sequence[bool]) -> Gradients:
    keys = query if key is None else key
    shapes = query.shape, keys.shape, query.shape[:1], keys.shape[:1]
    needs = needs[0], needs[1] and key is not None, *needs[2:]
    of_query, of_key, *biases = (
        query.new_zeros(shape if need else (0,), dtype=accumulator(query))
        for shape, need in zip(shapes, needs, strict=True)
    )
    return Gradients(of_query, of_key, of_query.new_zeros(()), *biases)


def _blocks(
    statistic: Statistic, sizes: Sequence[int], pairs: Pairs, ranks: Ranks
) -> Iterator[_Block]:
    """This rank's share of the tiles: some rows; of a symmetric matrix half of their columns."""
    M, N = sizes
    fold = statistic.fold.name
    cuts = [M * rank // ranks.size for rank in range(ranks.size + 1)]
    own = slice(cuts[ranks.rank], cuts[ranks.rank + 1])
    if not statistic.of_one:
        rectangles = [(statistic, own, slice(0, N))]
    elif not _symmetric(pairs):
        rectangles = [(STATISTICS[f"row_{fold}"], own, slice(0, N))]
    else:
        off_diagonal = (
            (STATISTICS[f"row_col_{fold}"], *block) for block in _half(cuts, ranks.rank)
        )
        rectangles = [(statistic, own, own), *off_diagonal]
    for visited, rows, columns in rectangles:
        if rows.start < rows.stop and columns.start < columns.stop:
            yield _Block(statistic, visited, rows, columns)


def _symmetric(pairs: Pairs) -> bool:
    """Whether a pair certainly counts for both of its rows or for neither."""
    same = zip(pairs.query_ids, pairs.key_ids, strict=True)
    return not pairs.options and all(query is key for query, key in same)


def _half(cuts: Sequence[int], rank: int) -> Iterator[tuple[slice, slice]]:
    """Of the blocks beside the diagonal those of a rank: its rows with those of the ranks that
    follow it, half way round; two ranks that are opposite share their block."""
    size = len(cuts) - 1
    own = slice(cuts[rank], cuts[rank + 1])
    last = rank + (size - 1) // 2
    yield own, slice(cuts[rank + 1], cuts[min(last, size - 1) + 1])
    if last >= size:
        yield own, slice(0, cuts[last - size + 1])
    if size % 2 == 0:
        low, high = sorted((rank, (rank + size // 2) % size))
        middle = (cuts[low] + cuts[low + 1]) // 2
        rows = slice(cuts[low], middle) if rank == low else slice(middle, cuts[low + 1])
        yield rows, slice(cuts[high], cuts[high + 1])
