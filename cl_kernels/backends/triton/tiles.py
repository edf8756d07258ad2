"""The pieces of the one tile loop: how it is cut, loads, inner products and stores.

Every kernel visits tiles of BLOCK_M rows of X and BLOCK_N rows of Y. A ``Tile`` says how, as one
constexpr. Logits are in a fold's unit (log2(e) is folded into the scale, so that an exponential is
one ``exp2``); what kernels hand out is in natural units.
"""

from functools import partial
from typing import NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

INTERPRETED = triton.knobs.runtime.interpret  # kernels are decorated for it once and for all

# Kernels' integers. They are not specialised on, so that one compilation serves every size.
INTEGERS = (
    "M", "N", "R", "span", "count", "parts", "first_block", "blocks",
    "row_start", "row_end", "col_start", "col_end",
    "k", "first_visit", "last_visit", "stride", "inverse", "tiles", "first_part", "capacity",
    "steps",
)  # fmt: skip
kernel = partial(triton.jit, do_not_specialize=INTEGERS)


class Tile(NamedTuple):
    """How rows are read and pairs are cut into tiles: a kernel's constexpr TILE.

    Its numbers are plain ones, which Triton 3.6 takes in ``tl.full`` and not in ``tl.zeros``.
    """

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int  # columns that are read at a time; divides D
    D: int  # the rows' columns, padded with zeros
    PITCH: int  # their columns in memory; fewer than D in a search only
    EVEN: bool  # both row counts are multiples of their blocks: nothing is masked at the edges
    PRECISION: str  # of float32 products, as ``tl.dot`` names it
    UPCAST: bool  # under the interpreter only, whose bfloat16 arithmetic is wrong


@triton.jit
def load_rows(
    X, first, bound, column, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr
):
    """Rows ``first`` ... of X, BLOCK_D of their columns; past the bound, the last row again."""
    rows = tl.arange(0, BLOCK)
    if not TILE.EVEN:
        rows = tl.minimum(rows, bound - 1 - first)
    cols = tl.arange(0, BLOCK_D)[None, :]
    # The base is 64-bit and what is added to it is small: no offset overflows.
    base = X + ((tl.zeros((), tl.int64) + first) * TILE.PITCH + column)
    pointers = base + (rows[:, None] * TILE.PITCH + cols)
    if TILE.D == TILE.PITCH:
        tile = tl.load(pointers)  # [BLOCK, BLOCK_D]
    else:
        tile = tl.load(pointers, mask=column + cols < TILE.PITCH, other=0.0)
    return tile.to(tl.float32) if TILE.UPCAST else tile


@triton.jit
def load_vector(V, rows, bound, EVEN: tl.constexpr):
    """Elements of V; past the bound, the last again."""
    return tl.load(V + (rows if EVEN else tl.minimum(rows, bound - 1)))


@triton.jit
def rounded(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """float32 ``x`` in ``dtype``, to the nearest even."""
    if UPCAST and dtype == tl.bfloat16:
        # The interpreter's own conversion cuts the bits off.
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def round_like(weights, X, UPCAST: tl.constexpr):
    """Weights as an operand of a product with rows of X."""
    operand = rounded(weights, X.dtype.element_ty, UPCAST)
    return operand.to(tl.float32) if UPCAST else operand


@triton.jit
def resident_rows(X, first, bound, TILE: tl.constexpr):
    """The owner's rows, which stay for the whole loop where one tile holds their width."""
    if TILE.D == TILE.BLOCK_D:
        return load_rows(X, first, bound, 0, TILE.BLOCK_M, TILE.D, TILE)
    else:
        return 0


@triton.jit
def tile_products(x, X, Y, first_row, first_col, M, N, TILE: tl.constexpr):
    """Inner products of a tile's rows and columns, float32 [BLOCK_M, BLOCK_N].

    ``x`` are the resident rows; wider rows are read again, BLOCK_D columns at a time.
    """
    if TILE.D == TILE.BLOCK_D:
        y = load_rows(Y, first_col, N, 0, TILE.BLOCK_N, TILE.D, TILE)
        return tl.dot(x, tl.trans(y), input_precision=TILE.PRECISION)
    else:
        products = tl.full((TILE.BLOCK_M, TILE.BLOCK_N), 0.0, tl.float32)
        for column in range(0, TILE.D, TILE.BLOCK_D):
            left = load_rows(X, first_row, M, column, TILE.BLOCK_M, TILE.BLOCK_D, TILE)
            right = load_rows(Y, first_col, N, column, TILE.BLOCK_N, TILE.BLOCK_D, TILE)
            products = tl.dot(left, tl.trans(right), products, input_precision=TILE.PRECISION)
        return products


@triton.jit
def in_range(rows, cols, M, N):
    # Not a conjunction: compilers would make a loop for rows inside and another for those outside.
    return cols[None, :] < tl.where(rows < M, N, 0)[:, None]


@triton.jit
def row_pointers(OUT, first, BLOCK: tl.constexpr, D: tl.constexpr):
    """Pointers to the rows ``first`` ... of OUT [R, D]."""
    base = OUT + (tl.zeros((), tl.int64) + first) * D
    return base + (tl.arange(0, BLOCK)[:, None] * D + tl.arange(0, D)[None, :])


@triton.jit
def store_each(OUTS, offsets, values, mask):
    """OUTS[n][offsets] = values[n] of two tuples."""
    for n in tl.static_range(len(OUTS)):  # pyright: ignore[reportGeneralTypeIssues]
        tl.store(OUTS[n] + offsets, values[n], mask=mask)
