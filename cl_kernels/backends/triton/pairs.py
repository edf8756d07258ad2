"""Which pairs of a tile count, and their logits: all that kernels know of ``Pairs``.

A kernel loads once what belongs to its own rows (``load_side``, before the loop: inside it takes 30
registers more); then it makes logits (``pair_logits``) and drops pairs (``drop_pairs``) by tiles.
Sides are symmetric: whichever owns the visit, and for Gram matrices a tile is read both ways, with
queries and keys exchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ids import compact_ids
from .tiles import in_range, load_vector

MAX_FILTERS = 3
KEEP_ALL, KEEP_SAME, KEEP_DIFFERENT = 0, 1, 2  # what a filter keeps: no filter, equal ids, others


class Side(NamedTuple):
    """What decides about pairs and belongs to one side's rows; None where there is nothing."""

    ids: tuple[Any, ...]  # of each filter, int32 [R]
    keep: tuple[Any, ...]  # what each keeps, a constexpr: the same on both sides
    below: Any = None  # float32 [R]: the row's similarities that are strictly below are kept
    above: Any = None  # float32 [R]: and those strictly above

    @property
    def bounded(self) -> bool:
        return self.below is not None or self.above is not None

    @property
    def keeps_all(self) -> bool:
        return not self.bounded and all(ids is None for ids in self.ids)

    def of_rows(self, part: slice) -> Side:
        ids = tuple(None if x is None else x[part] for x in self.ids)
        below, above = (None if x is None else x[part] for x in (self.below, self.above))
        return self._replace(ids=ids, below=below, above=above)

    def tainted(self, taint: Tensor) -> Side:
        """The same for rows of which some were zeroed: bounds keep no similarity that is NaN."""
        everything = torch.full_like(taint, torch.inf) if self.below is None else self.below
        return self._replace(below=everything + taint)


def sides(pairs) -> tuple[Side, Side]:
    """The queries' and the keys' part of a call's ``Pairs``."""
    compact = [compact_ids(queries, keys) for queries, keys, _ in pairs.filters]
    keep = [KEEP_SAME if same else KEEP_DIFFERENT for same in pairs.keep_same]
    missing = MAX_FILTERS - len(keep)
    keep = tuple(tl.constexpr(k) for k in (*keep, *(KEEP_ALL,) * missing))
    query_ids, key_ids = ((*(ids[s] for ids in compact), *(None,) * missing) for s in (0, 1))
    return Side(query_ids, keep, pairs.below, pairs.above), Side(key_ids, keep)


def symmetric(queries: Side, keys: Side) -> bool:
    """Pairs (i, j) and (j, i) are kept alike."""
    same_ids = all(q is k for q, k in zip(queries.ids, keys.ids, strict=True))
    return same_ids and not queries.bounded


@triton.jit
def load_if_given(V, rows, bound, EVEN: tl.constexpr):
    if V is None:
        return rows  # Triton 3.6 cannot return a tuple that holds None
    else:
        return load_vector(V, rows, bound, EVEN)


@triton.jit
def load_side(side, rows, bound, EVEN: tl.constexpr):
    """A side's vectors for some rows; the rows themselves where there is none."""
    return (
        load_if_given(side.ids[0], rows, bound, EVEN),
        load_if_given(side.ids[1], rows, bound, EVEN),
        load_if_given(side.ids[2], rows, bound, EVEN),
        load_if_given(side.below, rows, bound, EVEN),
        load_if_given(side.above, rows, bound, EVEN),
    )


@triton.jit
def pair_logits(products, scale, x, held, y, cols, N, EVEN: tl.constexpr):
    """A tile's logits. What the sides add to the scaled inner products is to be added here."""
    return products * scale


@triton.jit
def drop_by_ids(values, fill, x_ids, Y_IDS, cols, N, keep, EVEN: tl.constexpr):
    if Y_IDS is None:
        return values
    else:
        equal = x_ids[:, None] == load_vector(Y_IDS, cols, N, EVEN)[None, :]
        return tl.where(equal, values, fill) if keep == 1 else tl.where(equal, fill, values)


@triton.jit
def drop_by_sides(values, fill, similarity, x, held, y, cols, N, EVEN: tl.constexpr):
    """``fill`` where a filter or a bound drops a pair; ``held`` is what ``load_side`` has of x."""
    for f in tl.static_range(len(x.keep)):  # pyright: ignore[reportGeneralTypeIssues]
        values = drop_by_ids(values, fill, held[f], y.ids[f], cols, N, x.keep[f], EVEN)
    if x.below is not None:
        values = tl.where(similarity < held[3][:, None], values, fill)
    if x.above is not None:
        values = tl.where(similarity > held[4][:, None], values, fill)
    if y.below is not None:
        below = load_vector(y.below, cols, N, EVEN)
        values = tl.where(similarity < below[None, :], values, fill)
    if y.above is not None:
        above = load_vector(y.above, cols, N, EVEN)
        values = tl.where(similarity > above[None, :], values, fill)
    return values


@triton.jit
def drop_pairs(values, fill, similarity, x, held, y, rows, cols, M, N, EVEN: tl.constexpr):
    """The same, and where a pair is outside the matrix, [BLOCK_M, BLOCK_N]."""
    if not EVEN:
        values = tl.where(in_range(rows, cols, M, N), values, fill)
    return drop_by_sides(values, fill, similarity, x, held, y, cols, N, EVEN)


@triton.jit
def keep_both_ways(
    of_pair, of_reverse, similarity, queries, as_queries, keys, as_keys, rows, cols, M, N,
    SYMMETRIC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """``of_pair`` where (i, j) is kept, and ``of_reverse`` where (j, i) is, added up."""
    kept = drop_pairs(of_pair, 0.0, similarity, queries, as_queries, keys, rows, cols, M, N, EVEN)
    if not SYMMETRIC:
        kept += drop_pairs(
            of_reverse, 0.0, similarity, keys, as_keys, queries, rows, cols, M, N, EVEN
        )
    return kept
