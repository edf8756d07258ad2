"""Statistics of the rows of ``scale * X @ X.T``, from the tiles on and above its diagonal.

Since s_ij = s_ji, a tile above the diagonal serves its rows and, transposed, its columns. Pairs
need not be kept both ways: the row i of the pair (i, j) is served where (i, j) is kept, the row j
where (j, i) is. SYMMETRIC: they are kept both ways. Guides' similarities are not symmetric and take
most of the work: such calls are served as rows of queries against keys.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cl_kernels.backends.gpu import cuts
from cl_kernels.backends.gpu.cuts import Slabs

from .backward import row_col_backward, weight_gain
from .forward import row_col_forward
from .pairs import drop_pairs, keep_both_ways, load_side, pair_logits
from .prepare import finish_gradient
from .problem import Problem
from .slabs import Blocks, add_product, self_weights_kernel
from .states import States
from .tiles import (
    kernel,
    load_rows,
    resident_rows,
    round_like,
    row_pointers,
    store_each,
    tile_products,
)
from .weights import Upstream, load_upstream, weigh_self_pairs


@kernel
def self_fwd_kernel(
    X, SCALE, STATES, queries, keys, R, span, shift, first_block, blocks,
    SYMMETRIC: tl.constexpr, FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """STATES[n][block, j]: column j's over a block of rows above the diagonal's, and
    STATES[n][blocks + split, i]: row i's over a span of columns from the diagonal on.

    What this leaves out of them holds the state of nothing already.
    """
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first_row = (first_block + block) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    as_queries = load_side(queries, rows, R, TILE.EVEN)
    as_keys = as_queries if SYMMETRIC else load_side(keys, rows, R, TILE.EVEN)
    x = resident_rows(X, first_row, R, TILE)
    scale = tl.load(SCALE) * FOLD.unit
    state = FOLD.begin(TILE.BLOCK_M)
    start = tl.maximum(split * span, first_row)
    for first_col in range(start, tl.minimum(R, (split + 1) * span), TILE.BLOCK_N):
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        products = tile_products(x, X, X, first_row, first_col, R, R, TILE)
        logits = pair_logits(
            products, scale, queries, as_queries, keys, cols, R, FOLD.unit, TILE.EVEN
        )
        of_rows = drop_pairs(
            logits, float("-inf"), products, queries, as_queries, keys, rows, cols, R, R, TILE.EVEN
        )
        state = FOLD.add_tile(state, of_rows, shift)
        of_cols = of_rows
        if not SYMMETRIC:
            logits = pair_logits(
                products, scale, keys, as_keys, queries, cols, R, FOLD.unit, TILE.EVEN
            )
            of_cols = drop_pairs(
                logits, float("-inf"), products, keys, as_keys, queries, rows, cols, R, R, TILE.EVEN
            )
        above = (cols < R) & (cols >= first_row + TILE.BLOCK_M)
        FOLD.store_cols(STATES, block.to(tl.int64) * R + cols, above, of_cols, shift)
    store_each(STATES, (blocks + split).to(tl.int64) * R + rows, state, rows < R)


@kernel
def self_bwd_kernel(
    X, SCALE, SUM, queries, keys, upstream, R, span,
    SYMMETRIC: tl.constexpr, UPPER: tl.constexpr, FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """UPPER: SUM += W @ X, both ways from the tiles on and above the diagonal. Otherwise
    SUM[split] = W @ X over a span of columns, from all tiles and without atomics."""
    blocks = tl.cdiv(R, TILE.BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    as_queries = load_side(queries, rows, R, TILE.EVEN)
    as_keys = as_queries if SYMMETRIC else load_side(keys, rows, R, TILE.EVEN)
    of_rows = load_upstream(upstream, rows, R, FOLD, TILE.EVEN)
    x = load_rows(X, first_row, R, 0, TILE.BLOCK_M, TILE.D, TILE)
    scale = tl.load(SCALE) * FOLD.unit
    sums = tl.full((TILE.BLOCK_M, TILE.D), 0.0, tl.float32)
    start = split * span
    if UPPER:
        start = tl.maximum(start, first_row)
    for first_col in range(start, tl.minimum(R, (split + 1) * span), TILE.BLOCK_N):
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        y = load_rows(X, first_col, R, 0, TILE.BLOCK_N, TILE.D, TILE)
        of_cols = load_upstream(upstream, cols, R, FOLD, TILE.EVEN)
        products = tl.dot(x, tl.trans(y), input_precision=TILE.PRECISION)
        logits = pair_logits(
            products, scale, queries, as_queries, keys, cols, R, FOLD.unit, TILE.EVEN
        )
        reverse = pair_logits(
            products, scale, keys, as_keys, queries, cols, R, FOLD.unit, TILE.EVEN
        )
        weights, of_reverse = weigh_self_pairs(
            logits, reverse, upstream, of_rows, of_cols, SYMMETRIC, FOLD
        )
        weights = keep_both_ways(
            weights, of_reverse, products, queries, as_queries, keys, as_keys, rows, cols, R, R,
            SYMMETRIC, TILE.EVEN,
        )  # fmt: skip
        weights = round_like(weights, X, TILE.UPCAST)
        sums = tl.dot(weights, y, sums, input_precision=TILE.PRECISION)
        if UPPER:
            part = tl.dot(tl.trans(weights), x, input_precision=TILE.PRECISION)  # [BLOCK_N, D]
            above = (cols < R) & (cols >= first_row + TILE.BLOCK_M)
            pointers = row_pointers(SUM, first_col, TILE.BLOCK_N, TILE.D)
            tl.atomic_add(pointers, part, mask=above[:, None], sem="relaxed")
    if UPPER:
        pointers = row_pointers(SUM, first_row, TILE.BLOCK_M, TILE.D)
        tl.atomic_add(pointers, sums, mask=(rows < R)[:, None], sem="relaxed")
    else:
        first = split.to(tl.int64) * R + first_row
        tl.store(row_pointers(SUM, first, TILE.BLOCK_M, TILE.D), sums, mask=(rows < R)[:, None])


def self_forward(problem: Problem) -> tuple[Tensor, ...]:
    R, fold = problem.M, problem.forward_fold
    if problem.guided:
        return row_col_forward(problem, both=False)
    if R == 0:
        return tuple(problem.full((0,), x) for x in fold.empty)
    rows, _ = problem.logit_operands

    def run(config):
        waves = list(cuts.waves(triton.cdiv(R, config.BLOCK_M), R))
        splits, span = problem.spans(waves[0][1], config, per_processor=16)
        states = States(problem, fold, waves[0][1] + splits, R)
        for first, count in waves:
            states.clear()
            problem.launch(
                self_fwd_kernel, splits * count, config,
                rows, problem.scale, states.parts, problem.queries, problem.keys,
                R, span, problem.shift, first, count, SYMMETRIC=problem.symmetric, FOLD=fold,
            )  # fmt: skip
            states.merge(count + splits)
        return states.values

    return problem.with_config("self_forward", run)


def self_backward(problem: Problem, grad: Tensor, value: Tensor, train_biases):
    """Gradients as ``row_col_backward`` gives them, with that of the rows in the queries' place."""
    if problem.guided or any(train_biases):  # a bias is a side's: tiles of both ways mix them
        needs = True, True, *train_biases
        as_queries, as_keys, *more = row_col_backward(problem, (grad, value), None, needs)
        return as_queries.add_(as_keys), problem.empty(0), *more
    empty = [problem.empty(0) for _ in range(3)]
    if problem.M == 0:
        return problem.full(problem.query.shape, 0.0), empty[0], problem.full((), 0.0), *empty[1:]
    rows, _, taint, _ = problem.product_operands
    gain = weight_gain(problem, (grad, value))
    upstream = Upstream(grad.contiguous(), value, taint, gain)
    sums = (_slabs if problem.wide else _visit)(problem, rows, upstream)
    grad_x, products = finish_gradient(sums, rows, problem.scale, gain, problem.D)
    return grad_x, empty[0], 0.5 * products.sum(), *empty[1:]


def _visit(problem: Problem, rows: Tensor, upstream: Upstream) -> Tensor:
    upper, R = not problem.deterministic, problem.M

    def run(config):
        blocks = triton.cdiv(R, config.BLOCK_M)
        splits, span = problem.spans(blocks, config, per_processor=16 if upper else 2)
        if upper:
            sums = problem.full((1, R, problem.width), 0.0)
        else:
            sums = problem.empty(splits, R, problem.width)
        problem.launch(
            self_bwd_kernel, splits * blocks, config,
            rows, problem.scale, sums, *problem.product_sides, upstream, R, span,
            SYMMETRIC=problem.symmetric, UPPER=upper, FOLD=problem.fold,
        )  # fmt: skip
        return sums

    return problem.with_config("self_backward" if upper else "backward", run)


def _slabs(problem: Problem, rows: Tensor, upstream: Upstream) -> Tensor:
    """Blocks on and above the diagonal, each of those above it multiplied both ways."""
    sums = problem.full((1, *rows.shape), 0.0)
    slabs = Slabs.of(problem.M, problem.M, problem.compute_dtype.itemsize).upper()
    blocks = Blocks(problem, slabs)
    operands = rows, problem.scale
    for i, j in slabs:
        weights = blocks.write(
            self_weights_kernel, operands, i, j, *problem.product_sides, upstream,
            SYMMETRIC=problem.symmetric, FOLD=problem.fold,
        )  # fmt: skip
        add_product(sums[0, i], weights, rows[j])
        if i != j:
            add_product(sums[0, j], weights.T, rows[i])
    return sums
