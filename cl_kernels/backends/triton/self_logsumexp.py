"""Log-sum-exps of the rows of ``scale * X @ X.T``, from the tiles on and above its diagonal.

Since s_ij = s_ji, a tile above the diagonal serves its rows and, transposed, its columns. A filter
need not be symmetric: the row i of the pair (i, j) is served where it keeps (i, j), the row j
where it keeps (j, i).
"""

import torch
import triton
import triton.language as tl

from .gradients import weight_gain
from .launch import spans, waves
from .logsumexp import ColumnSums
from .prepare import finish_gradient
from .problem import Problem
from .slabs import Blocks, add_product, block_tile, store_weights
from .tiles import (
    LOG2E,
    drop_pairs,
    exponentials,
    kernel,
    load_ids,
    load_rows,
    resident_rows,
    round_like,
    start_maximum,
    store_column_sums,
    tile_products,
    upstream,
    weigh_pairs,
)


@kernel
def self_logsumexp_fwd_kernel(
    X, SCALE, MAXIMA, SUMS, QID0, KID0, QID1, KID1, R, span, shift,
    first_block, blocks,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr, SYMMETRIC: tl.constexpr,
    FIXED: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """MAXIMA and SUMS [block, j]: column j's over a block of rows above the diagonal's, and
    [blocks + split, i]: row i's over a span of columns from the diagonal on.

    What this leaves out of them is -inf and zero already.
    """
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first_row = (first_block + block) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    q_row0 = load_ids(QID0, rows, R, KEEP0, EVEN)
    q_row1 = load_ids(QID1, rows, R, KEEP1, EVEN)
    k_row0 = q_row0
    k_row1 = q_row1
    if not SYMMETRIC:
        k_row0 = load_ids(KID0, rows, R, KEEP0, EVEN)
        k_row1 = load_ids(KID1, rows, R, KEEP1, EVEN)
    x = resident_rows(X, first_row, R, D, EVEN, UPCAST, BLOCK_M, BLOCK_D)
    scale = tl.load(SCALE) * LOG2E
    maximum = start_maximum(shift, FIXED, BLOCK_M)
    total = tl.zeros((BLOCK_M,), tl.float32)
    start = tl.maximum(split * span, first_row)
    for first_col in range(start, tl.minimum(R, (split + 1) * span), BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        products = tile_products(
            x, X, X, first_row, first_col, R, R,
            D, EVEN, PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        logits = products * scale
        of_rows = drop_pairs(
            logits, float("-inf"), rows, cols, q_row0, q_row1, KID0, KID1,
            R, R, KEEP0, KEEP1, EVEN,
        )  # fmt: skip
        terms, shrink, maximum = exponentials(of_rows, maximum, FIXED, 1)
        total = total * shrink + tl.sum(terms, 1)
        of_cols = of_rows
        if not SYMMETRIC:
            of_cols = drop_pairs(
                logits, float("-inf"), rows, cols, k_row0, k_row1, QID0, QID1,
                R, R, KEEP0, KEEP1, EVEN,
            )  # fmt: skip
            if FIXED:
                terms = tl.exp2(of_cols - shift)
        offsets = block.to(tl.int64) * R + cols
        above = (cols < R) & (cols >= first_row + BLOCK_M)
        store_column_sums(MAXIMA, SUMS, offsets, above, of_cols, terms, FIXED, BLOCK_N)
    offsets = (blocks + split).to(tl.int64) * R + rows
    if not FIXED:
        tl.store(MAXIMA + offsets, maximum, mask=rows < R)
    tl.store(SUMS + offsets, total, mask=rows < R)


@triton.jit
def weigh_self_pairs(
    logits, gx, rx, tx, gy, ry, ty, rows, cols, M, N,
    q_row0, k_row0, q_row1, k_row1, QID0, KID0, QID1, KID1,
    KEEP0: tl.constexpr, KEEP1: tl.constexpr, SYMMETRIC: tl.constexpr,
    TAINTED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Weights of a tile's pairs: rows' terms where (i, j) is kept, columns' where (j, i) is."""
    if SYMMETRIC:
        of_rows = weigh_pairs(logits, gx, rx, tx, gy, ry, ty, True, True, TAINTED)
        of_cols = of_rows
    else:
        of_rows = gx[:, None] * tl.exp2(logits - rx[:, None]) + ty[None, :]
        of_cols = gy[None, :] * tl.exp2(logits - ry[None, :]) + tx[:, None]
    of_rows = drop_pairs(
        of_rows, 0.0, rows, cols, q_row0, q_row1, KID0, KID1,
        M, N, KEEP0, KEEP1, EVEN,
    )  # fmt: skip
    if not SYMMETRIC:
        of_rows += drop_pairs(
            of_cols, 0.0, rows, cols, k_row0, k_row1, QID0, QID1,
            M, N, KEEP0, KEEP1, EVEN,
        )  # fmt: skip
    return of_rows


@kernel
def self_logsumexp_bwd_kernel(
    X, SCALE, SUM, GRAD, LSE, TAINT, GAIN, QID0, KID0, QID1, KID1, R, span,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr, SYMMETRIC: tl.constexpr,
    UPPER: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """UPPER: SUM += W @ X, both ways from the tiles on and above the diagonal. Otherwise
    SUM[split] = W @ X over a span of columns, from all tiles and without atomics."""
    blocks = tl.cdiv(R, BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    q_row0 = load_ids(QID0, rows, R, KEEP0, EVEN)
    q_row1 = load_ids(QID1, rows, R, KEEP1, EVEN)
    k_row0 = q_row0
    k_row1 = q_row1
    if not SYMMETRIC:
        k_row0 = load_ids(KID0, rows, R, KEEP0, EVEN)
        k_row1 = load_ids(KID1, rows, R, KEEP1, EVEN)
    gx, rx, tx = upstream(GRAD, LSE, TAINT, GAIN, rows, R, EVEN)
    x = load_rows(X, first_row, R, 0, D, EVEN, UPCAST, BLOCK_M, D)
    scale = tl.load(SCALE) * LOG2E
    sums = tl.zeros((BLOCK_M, D), tl.float32)
    start = split * span
    if UPPER:
        start = tl.maximum(start, first_row)
    for first_col in range(start, tl.minimum(R, (split + 1) * span), BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        y = load_rows(X, first_col, R, 0, D, EVEN, UPCAST, BLOCK_N, D)
        gy, ry, ty = upstream(GRAD, LSE, TAINT, GAIN, cols, R, EVEN)
        logits = tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale
        weights = weigh_self_pairs(
            logits, gx, rx, tx, gy, ry, ty, rows, cols, R, R,
            q_row0, k_row0, q_row1, k_row1, QID0, KID0, QID1, KID1,

            KEEP0, KEEP1, SYMMETRIC, TAINT is not None, EVEN,
        )  # fmt: skip
        weights = round_like(weights, X, UPCAST)
        sums = tl.dot(weights, y, sums, input_precision=PRECISION)
        if UPPER:
            part = tl.dot(tl.trans(weights), x, input_precision=PRECISION)  # [BLOCK_N, D]
            pointers = SUM + (tl.zeros((), tl.int64) + first_col) * D
            pointers += tl.arange(0, BLOCK_N)[:, None] * D + tl.arange(0, D)[None, :]
            above = (cols < R) & (cols >= first_row + BLOCK_M)
            tl.atomic_add(pointers, part, mask=above[:, None], sem="relaxed")
    mask = (rows < R)[:, None]
    if UPPER:
        pointers = SUM + (tl.zeros((), tl.int64) + first_row) * D
    else:
        pointers = SUM + (split.to(tl.int64) * R + first_row) * D
    pointers += tl.arange(0, BLOCK_M)[:, None] * D + tl.arange(0, D)[None, :]
    if UPPER:
        tl.atomic_add(pointers, sums, mask=mask, sem="relaxed")
    else:
        tl.store(pointers, sums, mask=mask)


@kernel
def self_weights_kernel(
    X, SCALE, W, GRAD, LSE, TAINT, GAIN, QID0, KID0, QID1, KID1,
    row_start, row_end, col_start, col_end, pitch,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr, SYMMETRIC: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """W[i - row_start, j - col_start] = W_ij, in rows of ``pitch`` elements."""
    first_row, first_col = block_tile(
        row_start, row_end, col_start, col_end, GROUP, BLOCK_M, BLOCK_N
    )
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    x = resident_rows(X, first_row, row_end, D, EVEN, UPCAST, BLOCK_M, BLOCK_D)
    products = tile_products(
        x, X, X, first_row, first_col, row_end, col_end,
        D, EVEN, PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    logits = products * (tl.load(SCALE) * LOG2E)
    gx, rx, tx = upstream(GRAD, LSE, TAINT, GAIN, rows, row_end, EVEN)
    gy, ry, ty = upstream(GRAD, LSE, TAINT, GAIN, cols, col_end, EVEN)
    q_row0 = load_ids(QID0, rows, row_end, KEEP0, EVEN)
    q_row1 = load_ids(QID1, rows, row_end, KEEP1, EVEN)
    k_row0 = q_row0
    k_row1 = q_row1
    if not SYMMETRIC:
        k_row0 = load_ids(KID0, rows, row_end, KEEP0, EVEN)
        k_row1 = load_ids(KID1, rows, row_end, KEEP1, EVEN)
    weights = weigh_self_pairs(
        logits, gx, rx, tx, gy, ry, ty, rows, cols, row_end, col_end,
        q_row0, k_row0, q_row1, k_row1, QID0, KID0, QID1, KID1,

        KEEP0, KEEP1, SYMMETRIC, TAINT is not None, EVEN,
    )  # fmt: skip
    store_weights(
        W, weights, first_row, first_col, row_start, row_end, col_start, col_end, pitch, UPCAST
    )


def self_logsumexp(x, scale, *options):
    problem = Problem(x, x, scale, *options)
    R = problem.M
    lse = problem.full((R,), -torch.inf)
    if R == 0:
        return lse
    rows, _ = problem.logit_operands

    def run(config):
        parts = list(waves(triton.cdiv(R, config.BLOCK_M), R))
        splits, span = spans(parts[0][1], R, config, problem.device, per_processor=16)
        partial = ColumnSums(problem, parts[0][1] + splits, R)
        for first, count in parts:
            partial.clear()
            problem.launch(
                self_logsumexp_fwd_kernel, splits * count, config,
                rows, problem.scale, partial.maxima, partial.sums, *problem.ids,
                R, span, problem.shift, first, count, SYMMETRIC=problem.symmetric,
            )  # fmt: skip
            partial.add_to(lse, count + splits, accumulate=True)
        return lse

    return problem.with_config("self_forward", run)


def self_logsumexp_backward(grad, lse, x, scale, *options):
    problem = Problem(x, x, scale, *options)
    if problem.M == 0:
        return problem.full(x.shape, 0.0), problem.full((), 0.0)
    rows, _, taint, _ = problem.product_operands
    gain = weight_gain(problem, (grad, lse))
    args = grad.contiguous(), lse, taint, gain, *problem.ids
    sums = (_slabs if problem.wide else _visit)(problem, rows, args)
    grad_x, products = finish_gradient(sums, rows, problem.scale, gain, problem.D)
    return grad_x, 0.5 * products.sum()


def _visit(problem, rows, args):
    upper, R = not problem.deterministic, problem.M

    def run(config):
        blocks = triton.cdiv(R, config.BLOCK_M)
        splits, span = spans(blocks, R, config, problem.device, per_processor=16 if upper else 2)
        if upper:
            sums = problem.full((1, R, problem.width), 0.0)
        else:
            sums = problem.empty(splits, R, problem.width)
        problem.launch(
            self_logsumexp_bwd_kernel, splits * blocks, config,
            rows, problem.scale, sums, *args, R, span,
            SYMMETRIC=problem.symmetric, UPPER=upper,
        )  # fmt: skip
        return sums

    return problem.with_config("self_backward" if upper else "backward", run)


def _slabs(problem, rows, args):
    """Blocks on and above the diagonal, each of those above it multiplied both ways."""
    sums = problem.full((1, *rows.shape), 0.0)
    blocks = Blocks(problem, problem.M, problem.M)
    for i, j in blocks.upper():
        weights = blocks.write(
            self_weights_kernel, (rows, problem.scale), i, j, *args,
            SYMMETRIC=problem.symmetric,
        )  # fmt: skip
        add_product(sums[0, i], weights, rows[j])
        if i != j:
            add_product(sums[0, j], weights.T, rows[i])
    return sums
