"""The arguments of a loss with the rows of all ranks in the place of this rank's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from cl_kernels.csr import CSR, as_csr
from cl_kernels.losses.sharding import Sharding
from cl_kernels.pairs import PairFilter, as_filters
from cl_kernels.ranks.agreement import Disagreement, Entry, agree, described, modes
from cl_kernels.ranks.gathering import OwnRows, gather
from cl_kernels.ranks.group import Ranks
from cl_kernels.reading import readable

Whole = Callable[[], Any]  # makes an argument, once its tensors are gathered

_FIRST = "a tensor, which may have been given before"


class Gathered:
    """
    Args:
        name: Of the loss.
        sharding: Which of its arguments are rows.
        given: This rank's.
        ranks: The processes.

    Raises:
        ValueError: On every rank, if the ranks' calls differ.
    """

    def __init__(self, name: str, sharding: Sharding, given: Mapping[str, Any], ranks: Ranks):
        self._sharding, self._given, self._ranks = sharding, given, ranks
        self._places: dict[int, int] = {}  # where a tensor was given first
        self._halves: dict[int, tuple[Tensor, Tensor]] = {}  # of ids of two views
        self._tensors: list[Tensor] = []
        self._sources: list[int] = []  # of each tensor: where all ranks gave the same before
        self._first: dict[str, int] = {}  # an argument's first tensor
        self._counts: list[list[int]] = []
        self._whole: dict[int, Tensor] = {}
        self._said: list[Entry] = modes("all")  # then in the order of the arguments
        self._sides: list[str | None] = []  # of each tensor: "query", "key", or neither
        makers: dict[str, Whole] = {}
        wrong = None
        for argument, value in given.items():
            try:
                maker = self._maker(argument, value)
            except Exception as error:
                wrong, maker = wrong or error, None
                self._said.append(Entry(argument, "what cannot be read"))
            rows = maker is not None and argument not in sharding.where
            said = f"rows in a {type(value).__name__}" if rows else described(value)
            self._said.append(Entry(argument, said))
            if maker is not None:
                makers[argument] = maker
        # An error of this rank's own is told to the others first: they would wait for it.
        try:
            counts = agree(ranks, name, self._said, device_of(given))
        except Disagreement as error:
            raise (wrong or error) from None
        if wrong is not None:
            raise wrong
        self._counts = [of for of, said in zip(counts, self._said, strict=True) if said.is_rows]
        self._check_counts()
        given_first = [
            of for of, said in zip(counts, self._said, strict=True) if said.said == _FIRST
        ]
        self._sources = [
            of[0] if len(set(of)) == 1 else place for place, of in enumerate(given_first)
        ]
        self._whole = self._gather()
        self.arguments = dict(given) | {argument: make() for argument, make in makers.items()}

    def precision(self) -> AbstractContextManager:
        """In which products of these embeddings are made: they were widened for their gradients."""
        floating = embeddings_of(self._sharding, self._given)[:2]
        if not floating:
            return nullcontext()
        dtype = reduce(torch.promote_types, (x.dtype for x in floating))
        if dtype not in (torch.float16, torch.bfloat16):
            return nullcontext()
        return torch.autocast(floating[0].device.type, dtype)

    def counted(self) -> str:
        """The rows that each rank gave, in words."""
        of_names = {name: self._counts[place] for name, place in self._first.items()}
        return "rows of each rank: " + ", ".join(f"{name} {of}" for name, of in of_names.items())

    def own_rows(self, losses: Tensor) -> Tensor:
        """Those of this rank's rows: of each view's, of each pair's."""
        if self._sharding.views and self._given.get("view_1", 0) is not None:
            counts = self._counts[0]
            parts = losses.view(2, -1)
            return torch.cat([OwnRows.apply(part, self._ranks, counts) for part in parts])  # type: ignore[arg-type]
        of_pairs = self._given.get("positives") == "pairs"
        counts = self._counts[self._first.get("target keys", 0) if of_pairs else 0]
        each = losses.shape[0] // max(sum(counts), 1)  # a row may be several views
        return OwnRows.apply(losses, self._ranks, [n * each for n in counts])  # type: ignore[return-value]

    def _gather(self) -> dict[int, Tensor]:
        """By place; what every rank gives in the same two places travels once."""
        places = sorted(set(self._sources))
        tensors = [self._tensors[place] for place in places]
        counts = [self._counts[place] for place in places]
        return dict(zip(places, gather(self._ranks, tensors, counts), strict=True))

    def _maker(self, argument: str, value: Any) -> Whole | None:
        """None of what is the same on every rank."""
        sharding = self._sharding
        if argument in sharding.where:
            return self._filters(argument, value)
        if argument in sharding.counting and value is not None and not _is_rows(argument, value):
            return self._index(argument, value)
        own = argument in sharding.own and isinstance(value, Tensor) and value.dim() == 3
        if argument in sharding.rows or own:
            return self._rows(argument, value)
        return None

    def _rows(self, argument: str, value: Any) -> Whole | None:
        if isinstance(value, Tensor) and value.dim() > 0:
            if argument == "candidates" and value.dim() == 3:  # the columns come first
                return self._rows(argument, value.unbind())
            return self._maker_of(self._place(argument, value))
        if isinstance(value, (tuple, list)):
            makers = [self._rows(argument, x) for x in value]
            if None not in makers:
                return lambda: type(value)(make() for make in makers if make is not None)
        return None

    def _check_counts(self) -> None:
        """Rows that belong together are on the same rank; their numbers in all the loss checks."""
        names = [said.name for said in self._said if said.is_rows]
        for side in ("query", "key"):
            of_side = [place for place, of in enumerate(self._sides) if of == side]
            if not of_side:
                continue
            first = self._counts[of_side[0]]
            for place in of_side[1:]:
                counts, each = self._counts[place], 1
                if sum(first) and sum(counts) % sum(first) == 0:  # a row may be several views
                    each = sum(counts) // sum(first)
                if sum(counts) == each * sum(first) and counts != [each * n for n in first]:
                    raise ValueError(
                        f"{names[place]}: expected as many rows as {names[of_side[0]]} on each "
                        f"rank, {[each * n for n in first]}, got {counts}"
                    )

    def _side(self, argument: str) -> str:
        """Of which side of the matrix the rows are, where those are not the same."""
        sharding = self._sharding
        is_key = argument in sharding.keys and sharding.rectangular(self._given)
        return "key" if is_key else "query"

    def _place(self, argument: str, x: Tensor, side: str | None = "") -> int:
        place = len(self._tensors)
        self._tensors.append(x)
        self._sides.append(self._side(argument) if side == "" else side)
        self._said.append(Entry(argument, described(x, cut=True), x.shape[0], is_rows=True))
        self._said.append(Entry(argument, _FIRST, self._places.setdefault(id(x), place)))
        self._first.setdefault(argument, place)
        return place

    def _maker_of(self, *places: int) -> Whole:
        """Of what these tensors are the parts of."""

        def make() -> Tensor:
            parts = [self._whole[self._sources[place]] for place in places]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return make

    def _filters(self, argument: str, value: Any) -> Whole:
        cuts_keys = self._sharding.cuts_keys(argument, self._given)
        side = "key" if self._sharding.rectangular(self._given) else "query"
        taken: list[tuple[PairFilter, tuple[int, ...], tuple[int, ...]]] = []
        for one in as_filters(value, name=argument):
            query, key = self._ids(argument, one.query_ids, "query"), ()
            if cuts_keys:
                key = self._ids(argument, one.key_ids, side)
            else:  # everybody's
                self._said.append(Entry(argument, described(one.key_ids)))
            taken.append((one, query, key))

        def make() -> tuple[PairFilter, ...]:
            made = []
            for one, query, key in taken:
                of_query, of_key = self._maker_of(*query)(), one.key_ids
                if key:
                    of_both = [[self._sources[place] for place in of] for of in (query, key)]
                    same = of_both[0] == of_both[1]
                    of_key = of_query if same else self._maker_of(*key)()
                made.append(PairFilter(of_query, of_key, one.keep))
            return tuple(made)

        return make

    def _ids(self, argument: str, ids: Tensor, side: str) -> tuple[int, ...]:
        """Of rows; of two views those of the first come first, for all ranks as for one."""
        if not (self._sharding.views and self._given.get("view_1", 0) is not None):
            return (self._place(argument, ids, side),)
        if len(ids) % 2:
            raise ValueError(f"{argument}: expected ids of both views' rows, got {len(ids)}")
        half = len(ids) // 2
        halves = self._halves.setdefault(id(ids), (ids[:half], ids[half:]))
        return tuple(self._place(argument, part, side) for part in halves)

    def _index(self, argument: str, value: Any) -> Whole:
        """Indices of rows, which other ranks' rows now stand before."""
        name = self._sharding.counting[argument]
        others = self._given[name]
        if others is None and name not in self._sharding.rows:
            others, name = self._given["x"], "x"
        elif name not in self._sharding.rows:
            name = None
        if not isinstance(others, Tensor) or others.dim() < 2:
            raise TypeError(f"{name}: expected embeddings with {argument}, got {described(others)}")
        if name is not None:
            self._rows(name, others)
        repeated = others.shape[1] if others.dim() == 3 else 1
        size = others.shape[0] * repeated
        if isinstance(value, Tensor) and value.dim() == 1:
            if readable(value) and bool(((value < 0) | (value >= size)).any()):
                low, high = int(value.min()), int(value.max())
                raise ValueError(
                    f"{argument}: expected indices in [0, {size}), got {low} to {high}"
                )
            index = self._maker_of(self._place(argument, value))
            return lambda: index() + self._shift(argument, name, repeated)
        first = next(x for x in embeddings_of(self._sharding, self._given))
        rows = first.shape[0] if first.dim() < 3 else first.shape[0] * first.shape[1]
        lists = as_csr(argument, value, rows, size, first.device)
        counts = self._maker_of(self._place(argument, lists.counts()))
        keys = self._maker_of(self._place(f"{argument} keys", lists.keys, None))

        def make() -> CSR:
            each = counts()
            offsets = torch.cat((each.new_zeros(1), each.cumsum(0)))
            return CSR(offsets, keys() + self._shift(f"{argument} keys", name, repeated))

        return make

    def _shift(self, argument: str, name: str | None, repeated: int) -> Tensor | int:
        """What is added to each index: how many rows stand before its rank's."""
        if name is None:  # they are everybody's
            return 0
        rows, counts = self._counts[self._first[name]], self._counts[self._first[argument]]
        before = torch.tensor(rows).cumsum(0) - torch.tensor(rows)
        shift = (before * repeated).repeat_interleave(torch.tensor(counts))
        return shift.to(self._tensors[self._first[argument]].device)


def _is_rows(argument: str, value: Any) -> bool:
    """Labels of rows, and not lists of positives."""
    return argument == "labels" and isinstance(value, Tensor) and value.dim() == 1


def described_all(
    sharding: Sharding, given: Mapping[str, Any], gather: str
) -> tuple[Sequence[Entry], torch.device]:
    """What has to be the same of a call on every rank, where each keeps its rows."""
    cut = {*sharding.rows, *sharding.counting, *sharding.where}
    own = (name for name in sharding.own if isinstance(x := given[name], Tensor) and x.dim() == 3)
    cut |= {*own, *(sharding.own if sharding.apart(given) else ())}
    columns = given.get("candidates")
    if isinstance(columns, Tensor) and columns.dim() == 3:  # they come first
        given = dict(given) | {"candidates": columns.unbind()}
    lists = {name for name in sharding.counting if not _of_one_dimension(given[name])}
    entries = [
        Entry(name, "lists" if name in lists else described(x, cut=name in cut))
        for name, x in given.items()
    ]
    return [*modes(gather), *entries], device_of(given)


def _of_one_dimension(x: Any) -> bool:
    """An index of each row, or nothing; else lists of each, whose forms may differ."""
    return x is None or (isinstance(x, Tensor) and x.dim() == 1)


def device_of(given: Mapping[str, Any]) -> torch.device:
    found = (x.device for x in given.values() if isinstance(x, Tensor) and x.dim() > 1)
    return next(found, torch.device("cpu"))


def embeddings_of(sharding: Sharding, given: Mapping[str, Any]) -> list[Tensor]:
    """The floating-point tensors among the arguments that are rows."""
    flat = [given.get(name) for name in sharding.rows]
    flat = [y for x in flat for y in (x if isinstance(x, (tuple, list)) else (x,))]
    return [x for x in flat if isinstance(x, Tensor) and x.is_floating_point()]
