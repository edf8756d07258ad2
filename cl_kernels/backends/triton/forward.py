"""Statistics of the rows, and of rows and columns at once, of ``scale * Q @ K.T``.

A program owns BLOCK_M queries and visits a span of the keys. What several programs find for one
row or column is written as states of the fold and merged in order: no atomics, so the results
repeat bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cl_kernels.backends.gpu import cuts

from .pairs import drop_pairs, load_side, pair_logits
from .problem import Problem
from .states import States
from .tiles import kernel, resident_rows, store_each, tile_products


@kernel
def row_col_fwd_kernel(
    X, Y, SCALE, ROW, COL, queries, keys, M, N, span, shift, first_block, blocks,
    WHOLE: tl.constexpr, FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """ROW[n][split, i]: row i's state over a span of keys; its values, if the span is WHOLE.

    COL[n][block, j]: column j's state over one block of queries; None: nothing of columns.
    """
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first_row = (first_block + block) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    held = load_side(queries, rows, M, TILE.EVEN)
    x = resident_rows(X, first_row, M, TILE)
    scale = tl.load(SCALE) * FOLD.unit
    state = FOLD.begin(TILE.BLOCK_M)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), TILE.BLOCK_N):
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        products = tile_products(x, X, Y, first_row, first_col, M, N, TILE)
        logits = pair_logits(products, scale, queries, held, keys, cols, N, FOLD.unit, TILE.EVEN)
        logits = drop_pairs(
            logits, float("-inf"), products, queries, held, keys, rows, cols, M, N, TILE.EVEN
        )
        state = FOLD.add_tile(state, logits, shift)
        if COL is not None:
            offsets = block.to(tl.int64) * N + cols
            FOLD.store_cols(COL, offsets, cols < N, logits, shift)
    values = FOLD.end(state, shift) if WHOLE else state
    store_each(ROW, split.to(tl.int64) * M + rows, values, rows < M)


def row_col_forward(problem: Problem, both: bool) -> tuple[Tensor, ...]:
    """Values of the rows and, if ``both``, of the columns."""
    M, N, fold = problem.M, problem.N, problem.forward_fold
    if M == 0 or N == 0:
        return tuple(problem.full((R,), x) for R in (M, N)[: 1 + both] for x in fold.empty)
    query, key = problem.logit_operands

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        waves = list(cuts.waves(blocks, N)) if both else [(0, blocks)]
        splits, span = problem.spans(waves[0][1], config, per_processor=8)
        rows = States(problem, fold, splits, M)
        cols = States(problem, fold, waves[0][1], N) if both else None
        whole = splits == 1
        for first, count in waves:
            problem.launch(
                row_col_fwd_kernel, splits * count, config, query, key, problem.scale,
                rows.values if whole else rows.parts, None if cols is None else cols.parts,
                problem.queries, problem.keys, M, N, span, problem.shift, first, count,
                WHOLE=whole, FOLD=fold,
            )  # fmt: skip
            if cols is not None:
                cols.merge(count)
        if not whole:
            rows.merge(splits)
        return rows.values if cols is None else (*rows.values, *cols.values)

    return problem.with_config("row_col_forward" if both else "row_forward", run)
