"""The pieces of the one tile loop: loads, logits, filters and exponentials.

Every kernel visits tiles of BLOCK_M rows of X and BLOCK_N rows of Y. Logits are in base 2 (log2(e)
is folded into the scale), so that an exponential is one ``exp2``; log-sum-exps in memory are
natural logarithms. Kernels take the rows' width D as a constexpr that BLOCK_D divides.

Constexprs that the kernels share:
    KEEP0, KEEP1: what a filter keeps: 0 no filter, 1 equal ids, 2 different ids.
    EVEN: both row counts are multiples of their blocks, so nothing is masked at the edges.
    PRECISION: of float32 products, as ``tl.dot`` names it.
    UPCAST: set under the interpreter only, whose bfloat16 arithmetic is wrong.
"""

from functools import partial

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

KEEP_ALL, KEEP_SAME, KEEP_DIFFERENT = 0, 1, 2


@triton.jit
def load_rows(
    X, first, bound, column,
    D: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr = None,
):  # fmt: skip
    """Rows ``first`` ... of X, BLOCK_D of their columns; past the bound, the last row again.

    WIDTH: that of the rows in memory, where it is not D; columns past it are zero.
    """
    rows = tl.arange(0, BLOCK)
    if not EVEN:
        rows = tl.minimum(rows, bound - 1 - first)
    PITCH: tl.constexpr = D if WIDTH is None else WIDTH
    cols = tl.arange(0, BLOCK_D)[None, :]
    # The base is 64-bit and what is added to it is small: no offset overflows.
    base = X + ((tl.zeros((), tl.int64) + first) * PITCH + column)
    pointers = base + (rows[:, None] * PITCH + cols)
    if D == PITCH:
        tile = tl.load(pointers)  # [BLOCK, BLOCK_D]
    else:
        tile = tl.load(pointers, mask=column + cols < PITCH, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def load_vector(V, rows, bound, EVEN: tl.constexpr):
    """Elements of V; past the bound, the last again."""
    return tl.load(V + (rows if EVEN else tl.minimum(rows, bound - 1)))


@triton.jit
def load_ids(IDS, rows, bound, KEEP: tl.constexpr, EVEN: tl.constexpr):
    """The rows' ids, or the rows where there is no filter."""
    if KEEP == 0:
        return rows
    else:
        return load_vector(IDS, rows, bound, EVEN)


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
def resident_rows(
    X, first, bound,
    D: tl.constexpr, EVEN: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr = None,
):  # fmt: skip
    """The rows that stay for the whole loop, where one tile holds their width."""
    if D == BLOCK_D:
        return load_rows(X, first, bound, 0, D, EVEN, UPCAST, BLOCK, BLOCK_D, WIDTH)
    else:
        return 0


@triton.jit
def tile_products(
    x, X, Y, first_row, first_col, M, N,
    D: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr = None,
):  # fmt: skip
    """Inner products of a tile's rows and columns, float32 [BLOCK_M, BLOCK_N].

    ``x`` are the resident rows; wider rows are read again, BLOCK_D columns at a time.
    """
    if D == BLOCK_D:
        y = load_rows(Y, first_col, N, 0, D, EVEN, UPCAST, BLOCK_N, BLOCK_D, WIDTH)
        return tl.dot(x, tl.trans(y), input_precision=PRECISION)
    else:
        products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for column in range(0, D, BLOCK_D):
            left = load_rows(X, first_row, M, column, D, EVEN, UPCAST, BLOCK_M, BLOCK_D, WIDTH)
            right = load_rows(Y, first_col, N, column, D, EVEN, UPCAST, BLOCK_N, BLOCK_D, WIDTH)
            products = tl.dot(left, tl.trans(right), products, input_precision=PRECISION)
        return products


@triton.jit
def in_range(rows, cols, M, N):
    # Not a conjunction: compilers would make a loop for rows inside and another for those outside.
    return cols[None, :] < tl.where(rows < M, N, 0)[:, None]


@triton.jit
def drop_by_filter(
    values, fill, row_ids, COL_IDS, cols, N, KEEP: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    if KEEP == 0:
        return values
    else:
        equal = row_ids[:, None] == load_vector(COL_IDS, cols, N, EVEN)[None, :]
        return tl.where(equal, values, fill) if KEEP == 1 else tl.where(equal, fill, values)


@triton.jit
def drop_pairs(
    values, fill, rows, cols, row_ids0, row_ids1, COL_IDS0, COL_IDS1, M, N,
    KEEP0: tl.constexpr, KEEP1: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """``fill`` where a pair is outside or a filter drops it, [BLOCK_M, BLOCK_N]."""
    if not EVEN:
        values = tl.where(in_range(rows, cols, M, N), values, fill)
    values = drop_by_filter(values, fill, row_ids0, COL_IDS0, cols, N, KEEP0, EVEN)
    return drop_by_filter(values, fill, row_ids1, COL_IDS1, cols, N, KEEP1, EVEN)


@triton.jit
def finite_or_zero(x):
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def exponentials(logits, run_max, FIXED: tl.constexpr, AXIS: tl.constexpr):
    """A tile's exponentials, by which factor what was summed before shrinks, and the new maximum.

    FIXED: ``run_max`` is a shift that never changes. Otherwise it is the running maximum, which an
    infinite logit does not turn into inf - inf.
    """
    if FIXED:
        shift = run_max
        new_max = run_max
        shrink = tl.full(run_max.shape, 1.0, tl.float32)
    else:
        new_max = tl.maximum(run_max, tl.max(logits, AXIS))
        shift = finite_or_zero(new_max)
        shrink = tl.exp2(run_max - shift)
    return tl.exp2(logits - tl.expand_dims(shift, AXIS)), shrink, new_max


@triton.jit
def start_maximum(shift, FIXED: tl.constexpr, BLOCK: tl.constexpr):
    if FIXED:
        return tl.zeros((BLOCK,), tl.float32) + shift
    else:
        return tl.full((BLOCK,), float("-inf"), tl.float32)


@triton.jit
def logarithm(maximum, total):
    """Natural log-sum-exp of a base-2 maximum (or shift) and the sum of exponentials above it."""
    return (maximum + tl.log2(total)) * LN2


@triton.jit
def store_column_sums(
    MAXIMA, SUMS, offsets, mask, logits, terms, FIXED: tl.constexpr, BLOCK: tl.constexpr
):
    """A tile's column maxima and sums of exponentials above them; with a fixed shift the rows'
    exponentials serve the columns too."""
    if not FIXED:
        terms, _, maximum = exponentials(logits, start_maximum(0.0, False, BLOCK), False, 0)
        tl.store(MAXIMA + offsets, maximum, mask=mask)
    tl.store(SUMS + offsets, tl.sum(terms, 0), mask=mask)


@triton.jit
def upstream(GRAD, LSE, TAINT, GAIN, rows, bound, EVEN: tl.constexpr):
    """Some rows' upstream gradient, base-2 log-sum-exp and taint; zeros where they are None.

    A row with no kept pair has no gradient, whatever comes from upstream.
    """
    if GRAD is None:
        grad = tl.zeros(rows.shape, tl.float32)
        lse = grad
    else:
        lse = load_vector(LSE, rows, bound, EVEN)
        grad = tl.where(lse == float("-inf"), 0.0, load_vector(GRAD, rows, bound, EVEN))
        if GAIN is not None:
            grad *= tl.load(GAIN)
        lse = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    taint = grad
    if TAINT is not None:
        taint = load_vector(TAINT, rows, bound, EVEN)
    return grad, lse, taint


@triton.jit
def weigh_pairs(
    logits, gx, rx, tx, gy, ry, ty,
    OF_ROWS: tl.constexpr, OF_COLS: tl.constexpr, TAINTED: tl.constexpr,
):  # fmt: skip
    """Weights of a tile's pairs: each side's upstream gradient times its softmax."""
    if OF_ROWS and OF_COLS:
        if TAINTED:
            rx += tx
            ry += ty
        weights = gx[:, None] * tl.exp2(logits - rx[:, None])
        weights += gy[None, :] * tl.exp2(logits - ry[None, :])
    elif OF_ROWS:
        weights = gx[:, None] * tl.exp2(logits - rx[:, None])
        if TAINTED:
            weights += ty[None, :]
    else:
        weights = gy[None, :] * tl.exp2(logits - ry[None, :])
        if TAINTED:
            weights += tx[:, None]
    return weights
