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
BELOW, ABOVE, BIAS, CEILING = (tl.constexpr(MAX_FILTERS + n) for n in range(4))  # in ``load_side``
BLOCK_G = tl.constexpr(32)  # columns of guides that are read at a time
BOUNDS = "below", "above"  # of similarities: options of Pairs that a search serves, beside filters


class Side(NamedTuple):
    """What decides about pairs and belongs to one side's rows; None where there is nothing."""

    ids: tuple[Any, ...]  # of each filter, int32 [R]
    keep: tuple[Any, ...]  # what each keeps, a constexpr: the same on both sides
    below: Any = None  # float32 [R]: the row's similarities that are strictly below are kept
    above: Any = None  # float32 [R]: and those strictly above
    bias: Any = None  # float32 [R]: added to the row's logits
    guide: Any = None  # float32 [R, GUIDE_WIDTH]: another model's embeddings, as ``guide_rows``
    GUIDE_WIDTH: Any = tl.constexpr(0)  # a multiple of BLOCK_G
    ceiling: Any = None  # float32 [R]: guides' similarities up to it are kept

    @property
    def bounded(self) -> bool:
        return any(getattr(self, name) is not None for name in BOUNDS)

    @property
    def plain(self) -> bool:
        """There are filters at most."""
        return not self.bounded and self.bias is None and self.guide is None

    @property
    def keeps_all(self) -> bool:
        return not self.bounded and self.guide is None and all(ids is None for ids in self.ids)

    def of_rows(self, part: slice) -> Side:
        """For a search: of these rows."""
        ids = tuple(None if x is None else x[part] for x in self.ids)
        bounds = {name: getattr(self, name) for name in BOUNDS}
        bounds = {name: None if x is None else x[part] for name, x in bounds.items()}
        return self._replace(ids=ids, **bounds)

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
    bounds = {name: getattr(pairs, name) for name in BOUNDS}
    queries = Side(query_ids, keep, bias=pairs.query_bias, **bounds)
    keys = Side(key_ids, keep, bias=pairs.key_bias)
    if pairs.ceiling is not None:
        guides = guide_rows(pairs.query_guide, 0, 0, 1), guide_rows(pairs.key_guide, 0, 1, 0)
        width = tl.constexpr(guides[0].shape[1])
        queries = queries._replace(guide=guides[0], GUIDE_WIDTH=width, ceiling=pairs.ceiling)
        keys = keys._replace(guide=guides[1], GUIDE_WIDTH=width)
    return queries, keys


def guide_rows(x: Tensor, *parts: int) -> Tensor:
    """Float32 rows for products in TF32, which have ten bits of each number.

    A row is the sum of two such; its ``parts`` stand side by side, padded with zeros. The inner
    product of parts (0, 0, 1) with (0, 1, 0) is that of the rows but for 2**-22 of each term.
    """
    rounded = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    halves = rounded, x - rounded
    rows = torch.cat([halves[part] for part in parts], 1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % BLOCK_G.value))


def symmetric(queries: Side, keys: Side) -> bool:
    """Pairs (i, j) and (j, i) are kept alike and have the same logits."""
    same_ids = all(q is k for q, k in zip(queries.ids, keys.ids, strict=True))
    return same_ids and queries.plain and keys.plain


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
        load_if_given(side.bias, rows, bound, EVEN),
        load_if_given(side.ceiling, rows, bound, EVEN),
    )


@triton.jit
def pair_logits(products, scale, x, held, y, cols, N, UNIT: tl.constexpr, EVEN: tl.constexpr):
    """A tile's logits, in a fold's UNIT, which is in the scale already."""
    logits = products * scale
    if x.bias is not None:
        logits += (held[BIAS] * UNIT)[:, None]
    if y.bias is not None:
        logits += (load_vector(y.bias, cols, N, EVEN) * UNIT)[None, :]
    return logits


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
        values = tl.where(similarity < held[BELOW][:, None], values, fill)
    if x.above is not None:
        values = tl.where(similarity > held[ABOVE][:, None], values, fill)
    if y.below is not None:
        below = load_vector(y.below, cols, N, EVEN)
        values = tl.where(similarity < below[None, :], values, fill)
    if y.above is not None:
        above = load_vector(y.above, cols, N, EVEN)
        values = tl.where(similarity > above[None, :], values, fill)
    return values


@triton.jit
def load_guides(side, rows, bound, column, EVEN: tl.constexpr):
    rows = rows if EVEN else tl.minimum(rows, bound - 1)
    first = side.guide + (rows.to(tl.int64) * side.GUIDE_WIDTH + column)
    return tl.load(first[:, None] + tl.arange(0, BLOCK_G)[None, :])


@triton.jit
def drop_by_guides(values, fill, x, held, y, rows, cols, M, N, EVEN: tl.constexpr):
    """``fill`` where the guides' similarity is above the query's ceiling."""
    if x.guide is None:
        return values
    else:
        similarity = tl.full(values.shape, 0.0, tl.float32)
        for column in range(0, x.GUIDE_WIDTH, BLOCK_G):
            left = load_guides(x, rows, M, column, EVEN)
            right = load_guides(y, cols, N, column, EVEN)
            similarity = tl.dot(left, tl.trans(right), similarity, input_precision="tf32")
        if x.ceiling is not None:
            return tl.where(similarity <= held[CEILING][:, None], values, fill)
        else:
            ceiling = load_vector(y.ceiling, cols, N, EVEN)
            return tl.where(similarity <= ceiling[None, :], values, fill)


@triton.jit
def drop_pairs(values, fill, similarity, x, held, y, rows, cols, M, N, EVEN: tl.constexpr):
    """The same, and where a pair is outside the matrix, [BLOCK_M, BLOCK_N]."""
    if not EVEN:
        values = tl.where(in_range(rows, cols, M, N), values, fill)
    # Guides come last, when the similarities need no registers any more.
    values = drop_by_sides(values, fill, similarity, x, held, y, cols, N, EVEN)
    return drop_by_guides(values, fill, x, held, y, rows, cols, M, N, EVEN)


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
