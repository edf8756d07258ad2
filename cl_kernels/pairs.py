"""Which (query, key) pairs count, said by vectors instead of an M x N boolean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cl_kernels._numbers import check_integers

MAX_FILTERS = 3


def _id_vector(name: str, ids: Tensor) -> Tensor:
    if not isinstance(ids, Tensor):
        ids = _from_sequence(name, ids)
    check_integers(name, ids)
    if ids.dim() != 1:
        raise ValueError(f"{name}: expected one id for each row (1-D), got shape {list(ids.shape)}")
    return ids.to(torch.int64).contiguous()


def _from_sequence(name: str, ids: Sequence[int]) -> Tensor:
    """Of a list or a NumPy array."""
    try:
        if isinstance(ids, (list, tuple)) and not ids:
            return torch.empty(0, dtype=torch.int64, device="cpu")
        return torch.as_tensor(ids, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(ids).__name__
        raise TypeError(f"{name}: expected an integer tensor or a list, got {kind}") from error


@dataclass(frozen=True)
class PairFilter:
    """Keeps the pairs whose ids are the same, or those whose ids differ.

    Args:
        query_ids: Integer ids of the queries, shape [M]; any values (labels, indices, hashes);
            a tensor, or a list or NumPy array for embeddings in host memory.
        key_ids: Integer ids of the keys, shape [N], on the same device.
        keep: ``"same"`` keeps pair (i, j) if ``query_ids[i] == key_ids[j]``; ``"different"``
            keeps it if they differ.

    Raises:
        TypeError: If the ids are not integers.
        ValueError: If the ids are not 1-D or ``keep`` is neither word.
    """

    query_ids: Tensor
    key_ids: Tensor
    keep: Literal["same", "different"]

    def __post_init__(self) -> None:
        if self.keep not in ("same", "different"):
            raise ValueError(f'keep: expected "same" or "different", got {self.keep!r}')
        query_ids = _id_vector("query_ids", self.query_ids)
        same_ids = self.key_ids is self.query_ids
        object.__setattr__(self, "query_ids", query_ids)
        key_ids = query_ids if same_ids else _id_vector("key_ids", self.key_ids)
        object.__setattr__(self, "key_ids", key_ids)


Where = PairFilter | Sequence[PairFilter] | None


def as_filters(
    where: Where, most: int = MAX_FILTERS, name: str = "where"
) -> tuple[PairFilter, ...]:
    """The filters of a ``where`` argument as a tuple of at most ``most``."""
    filters = (where,) if isinstance(where, PairFilter) else () if where is None else where
    if not isinstance(filters, (tuple, list)) or not all(
        isinstance(f, PairFilter) for f in filters
    ):
        kind = type(where).__name__
        raise TypeError(f"{name}: expected a PairFilter or a sequence of them, got {kind}")
    if len(filters) > most:
        plural = "s" if most > 1 else ""
        raise ValueError(f"{name}: expected at most {most} filter{plural}, got {len(filters)}")
    return tuple(filters)


class Pairs(NamedTuple):
    """Which pairs of a call count: checked, in the order of every schema, for every backend.

    The same names stand in ``csrc/pairs.h`` and in the Triton backend's ``pairs.py``. A similarity
    is the inner product as a tile gives it, before the scale; in a search, the score.
    """

    query_ids: tuple[Tensor, ...] = ()  # int64 [M] each: the filters'
    key_ids: tuple[Tensor, ...] = ()  # int64 [N] each
    keep_same: tuple[bool, ...] = ()
    below: Tensor | None = None  # [M]: similarities strictly below it are kept
    above: Tensor | None = None  # [M]
    query_bias: Tensor | None = None  # [M]: added to the logits
    key_bias: Tensor | None = None  # [N]
    query_guide: Tensor | None = None  # [M, G]: another model's embeddings
    key_guide: Tensor | None = None  # [N, G]
    ceiling: Tensor | None = None  # [M]: similarities of the guides up to it are kept

    @property
    def filters(self) -> Iterator[tuple[Tensor, Tensor, bool]]:
        return zip(self.query_ids, self.key_ids, self.keep_same, strict=True)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of what is given beside filters."""
        given = zip(OPTIONS, self._given(), strict=True)
        return tuple([name for name, x in given if x is not None])

    def _given(self) -> tuple[Tensor | None, ...]:
        given: Any = self[len(self) - len(OPTIONS) :]
        return given

    def of_queries(self, part: slice) -> Pairs:
        """For some of the queries."""
        return self._cut(part, set(self._fields) - OF_KEYS - {"keep_same"})

    def of_keys(self, part: slice) -> Pairs:
        """For some of the keys."""
        return self._cut(part, OF_KEYS)

    def without(self, query_ids: Tensor, key_ids: Tensor) -> Pairs:
        """But for the pairs of equal ids."""
        return self._replace(
            query_ids=(query_ids, *self.query_ids),
            key_ids=(key_ids, *self.key_ids),
            keep_same=(False, *self.keep_same),
        )

    def _cut(self, part: slice, names: Iterable[str]) -> Pairs:
        def cut(x):
            return tuple(map(cut, x)) if isinstance(x, tuple) else None if x is None else x[part]

        return self._replace(**{name: cut(getattr(self, name)) for name in names})

    def negated(self) -> Pairs:
        """Of the negated similarities."""
        below, above = (None if x is None else -x for x in (self.above, self.below))
        return self._replace(below=below, above=above)

    def tensors(self) -> tuple[Tensor, ...]:
        return *self.query_ids, *self.key_ids, *[x for x in self._given() if x is not None]

    def holding(self, tensors: Sequence[Tensor]) -> Pairs:
        """The same with other tensors, in the order of ``tensors()``."""
        count = len(self.keep_same)
        query_ids, key_ids = tuple(tensors[:count]), tuple(tensors[count : 2 * count])
        others = iter(tensors[2 * count :])
        given = [None if x is None else next(others) for x in self._given()]
        return Pairs(query_ids, key_ids, self.keep_same, *given)


PAIRS = (
    "Tensor[] query_ids, Tensor[] key_ids, bool[] keep_same, Tensor? below, Tensor? above,"
    " Tensor? query_bias, Tensor? key_bias,"
    " Tensor? query_guide, Tensor? key_guide, Tensor? ceiling"
)
OF_KEYS = {name for name in Pairs._fields if name.startswith("key_")}  # the others: of queries
OPTIONS = tuple(name for name in Pairs._fields if name not in ("query_ids", "key_ids", "keep_same"))


def as_pairs(filters: Sequence[PairFilter], **options) -> Pairs:
    """Of checked filters and options."""
    given = [(f.query_ids, f.key_ids, f.keep == "same") for f in filters]
    query_ids, key_ids, keep_same = zip(*given, strict=True) if given else ((), (), ())
    return Pairs(query_ids, key_ids, keep_same, **options)


def count_same(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """How many keys [N] have the query's id, [M]."""
    ordered, ids = key_ids.sort().values, query_ids.contiguous()
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
