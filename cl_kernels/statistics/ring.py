"""A statistic of embeddings of which every process has its own, and no process ever has all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels._spread import Spread
from cl_kernels.calls import Call
from cl_kernels.pairs import OF_KEYS, Pairs
from cl_kernels.ranks.group import Ranks
from cl_kernels.ranks.round import Visitors, counts_of_all, go_round, positions
from cl_kernels.statistics.operations import Gradients, backward, forward
from cl_kernels.statistics.table import STATISTICS, Statistic


class Ring(Spread):
    """Queries stay, keys go round: each rank passes on those it has while it visits their tiles.

    Values are those of this rank's queries over all ranks' keys and, of columns, of its keys over
    all ranks' queries; what belongs to keys is summed up on their way and comes home with them.
    Gradients are whole: of this rank's embeddings by all ranks' values.
    """

    ranks: Ranks
    further_go_round: bool
    weighs_keys = False

    @classmethod
    def of(cls, backend: str, ranks: Ranks, further_go_round: bool = False) -> Ring:
        """``further_go_round``: whether every rank has further keys of its own."""
        ring = cls(backend)
        ring.ranks, ring.further_go_round = ranks, further_go_round
        return ring

    def of_shared(self) -> str:
        return self if self.further_go_round else str(self)

    def positions(self, count: int, device: torch.device) -> Tensor:
        return positions(self.ranks.rank, torch.arange(count, device=device))

    def forward(self, statistic, query, key, scale, call):
        own, counts = self._shard(query, key, call)
        visited, each = _of_rectangles(statistic), 2 if statistic.fold.counts else 1
        values: list[Tensor] = []

        def visit(shard: _Shard) -> list[Tensor]:
            nonlocal values
            given = query, shard.rows(query), scale, shard.beside(call)
            found = forward(visited, str(self), *given)
            values = unite(values, found[:each]) if values else list(found[:each])
            return list(found[each:])

        def unite(some: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
            first = statistic.fold.union(some[0], more[0])
            return [first, *(a + b for a, b in zip(some[1:], more[1:], strict=True))]

        of_columns = self._round(own, counts, visit, unite)
        return *values, *of_columns

    def backward(self, statistic, grads, values, query, key, scale, call, needs):
        own, counts = self._shard(query, key, call)
        needs = (needs[0], needs[0], *needs[2:]) if statistic.of_one else tuple(needs)
        visited, columns = _of_rectangles(statistic), list(zip(grads[1:], values[1:], strict=True))
        own = own._replace(columns=tuple(x.contiguous() for pair in columns for x in pair))
        sums = [query.new_zeros((), dtype=accumulator(query)) for _ in range(3)]

        def visit(shard: _Shard) -> list[Tensor]:
            of_grads, of_values = [grads[0], *shard.columns[::2]], [values[0], *shard.columns[1::2]]
            given = query, shard.rows(query), scale, shard.beside(call), needs
            found = backward(visited, str(self), of_grads, of_values, *given)
            for place, part in enumerate((found.query, found.query_bias, found.scale)):
                sums[place] = sums[place] + part
            return [x for x, need in zip((found.key, found.key_bias), of_keys, strict=True) if need]

        of_keys = needs[1], needs[3]
        found = iter(self._round(own, counts, visit))
        of_key, of_key_bias = (next(found) if need else sums[0].new_empty(0) for need in of_keys)
        of_query, of_query_bias, of_scale = sums
        if statistic.of_one and needs[1]:
            of_query = of_query + of_key
        return Gradients(of_query, of_key, of_scale, of_query_bias, of_key_bias)

    def _shard(self, query: Tensor, key: Tensor | None, call: Call) -> tuple[_Shard, list[int]]:
        """This rank's keys, rounded as tiles round them, and how many each rank has."""
        key = query if key is None else key
        of_keys = {n: getattr(call.pairs, n) for n in sorted(OF_KEYS)}
        ids = of_keys.pop("key_ids")
        given = {name: x for name, x in of_keys.items() if x is not None}
        shard = _Shard(key.to(call.compute_dtype), ids, tuple(given), tuple(given.values()), ())
        said = f"{call.compute_dtype}, {len(ids)} filters, {', '.join(given)}"
        return shard, counts_of_all(self.ranks, said, key.shape[0], key.device)

    def _round(
        self,
        own: _Shard,
        counts: Sequence[int],
        visit: Callable[[_Shard], list[Tensor]],
        unite: Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """What all ranks' visits of this rank's keys give, united."""

        def visited(visitors: Visitors) -> list[Tensor]:
            return visit(own.holding(visitors.rows))

        return go_round(self.ranks, own.tensors, counts, visited, unite)


class _Shard(NamedTuple):
    """Keys on their way.

    Args:
        keys: [n, D], in the precision of products.
        ids: Of each filter, int64 [n].
        names: Of what else of ``Pairs`` belongs to keys.
        given: Those, [n, ...] each.
        columns: Gradients and values of their columns, in turn.
    """

    keys: Tensor
    ids: tuple[Tensor, ...]
    names: tuple[str, ...]
    given: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        return [self.keys, *self.ids, *self.given, *self.columns]

    def holding(self, tensors: Sequence[Tensor]) -> _Shard:
        rest = iter(tensors[1:])
        parts = (tuple(next(rest) for _ in part) for part in (self.ids, self.given, self.columns))
        ids, given, columns = parts
        return _Shard(tensors[0], ids, self.names, given, columns)

    def rows(self, query: Tensor) -> Tensor:
        return self.keys.to(query.dtype)

    def beside(self, call: Call) -> Call:
        """The call of the queries with these keys."""
        named = dict(zip(self.names, self.given, strict=True))
        pairs: Pairs = call.pairs._replace(key_ids=self.ids, **named)
        return call._replace(pairs=pairs)


def _of_rectangles(statistic: Statistic) -> Statistic:
    """Of a matrix with itself the rows' alone: another rank has the other half."""
    return STATISTICS[f"row_{statistic.fold.name}"] if statistic.of_one else statistic
