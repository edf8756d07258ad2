"""Gradients of wide embeddings: square blocks of the weights, and matrix products with them.

A program that held its sums in registers would be too wide, so a kernel writes a block of W of at
most ``SLAB_BYTES`` and cuBLAS multiplies it, adding to float32 sums. Square blocks move the
fewest of those sums, and no sum is added to by two programs at once: the results repeat bit for
bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cl_kernels.backends.gpu.cuts import Slabs

from .pairs import drop_pairs, keep_both_ways, load_side, pair_logits
from .problem import Problem
from .tiles import kernel, resident_rows, rounded, tile_products
from .weights import load_upstream, weigh_pairs, weigh_self_pairs

GROUP = tl.constexpr(8)  # row blocks whose tiles are neighbours, for the L2 cache


@triton.jit
def block_tile(row_start, row_end, col_start, col_end, TILE: tl.constexpr):
    """First row and column of this program's tile of a block of W."""
    row_tiles = tl.cdiv(row_end - row_start, TILE.BLOCK_M)
    col_tiles = tl.cdiv(col_end - col_start, TILE.BLOCK_N)
    row, col = tl.swizzle2d(
        tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles, row_tiles, col_tiles, GROUP
    )
    return row_start + row * TILE.BLOCK_M, col_start + col * TILE.BLOCK_N


@triton.jit
def store_weights(
    W, weights, first_row, first_col, row_start, row_end, col_start, pitch, TILE: tl.constexpr
):
    """What is outside of the block is zero, and goes into the padding of W's rows."""
    row = first_row - row_start
    col = tl.multiple_of(first_col - col_start, weights.shape[1])
    i = tl.arange(0, TILE.BLOCK_M)[:, None]
    j = tl.arange(0, TILE.BLOCK_N)[None, :]
    pointers = W + ((tl.zeros((), tl.int64) + row) * pitch + col) + (i * pitch + j)
    weights = rounded(weights, W.dtype.element_ty, TILE.UPCAST)
    if TILE.EVEN:
        tl.store(pointers, weights)
    else:
        # The pitch is a multiple of 16, the number of columns of any: by the pitch 16 bytes are one
        # store, by the columns two are, and each takes a whole sector of L2.
        tl.store(pointers, weights, mask=(i < row_end - first_row) & (j < pitch - col))


@kernel
def row_col_weights_kernel(
    X, Y, SCALE, W, x_side, y_side, x_upstream, y_upstream,
    row_start, row_end, col_start, col_end, pitch, FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """W[i - row_start, j - col_start] = W_ij, in rows of ``pitch`` elements."""
    first_row, first_col = block_tile(row_start, row_end, col_start, col_end, TILE)
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    cols = first_col + tl.arange(0, TILE.BLOCK_N)
    x = resident_rows(X, first_row, row_end, TILE)
    products = tile_products(x, X, Y, first_row, first_col, row_end, col_end, TILE)
    scale = tl.load(SCALE) * FOLD.unit
    # Loaded twice, for logits and for dropping: what is not used of it is not loaded.
    held = load_side(x_side, rows, row_end, TILE.EVEN)
    logits = pair_logits(products, scale, x_side, held, y_side, cols, col_end, FOLD.unit, TILE.EVEN)
    of_rows = load_upstream(x_upstream, rows, row_end, FOLD, TILE.EVEN)
    of_cols = load_upstream(y_upstream, cols, col_end, FOLD, TILE.EVEN)
    held = load_side(x_side, rows, row_end, TILE.EVEN)
    weights = weigh_pairs(logits, x_upstream, of_rows, y_upstream, of_cols, FOLD)
    weights = drop_pairs(
        weights, 0.0, products, x_side, held, y_side, rows, cols, row_end, col_end, TILE.EVEN
    )
    store_weights(W, weights, first_row, first_col, row_start, row_end, col_start, pitch, TILE)


@kernel
def self_weights_kernel(
    X, SCALE, W, queries, keys, upstream, row_start, row_end, col_start, col_end, pitch,
    SYMMETRIC: tl.constexpr, FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The same of a Gram matrix."""
    first_row, first_col = block_tile(row_start, row_end, col_start, col_end, TILE)
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    cols = first_col + tl.arange(0, TILE.BLOCK_N)
    x = resident_rows(X, first_row, row_end, TILE)
    products = tile_products(x, X, X, first_row, first_col, row_end, col_end, TILE)
    scale = tl.load(SCALE) * FOLD.unit
    # Loaded twice, for logits and for dropping: what is not used of it is not loaded.
    as_queries = load_side(queries, rows, row_end, TILE.EVEN)
    as_keys = load_side(keys, rows, row_end, TILE.EVEN)
    logits = pair_logits(
        products, scale, queries, as_queries, keys, cols, col_end, FOLD.unit, TILE.EVEN
    )
    reverse = pair_logits(
        products, scale, keys, as_keys, queries, cols, col_end, FOLD.unit, TILE.EVEN
    )
    of_rows = load_upstream(upstream, rows, row_end, FOLD, TILE.EVEN)
    of_cols = load_upstream(upstream, cols, col_end, FOLD, TILE.EVEN)
    as_queries = load_side(queries, rows, row_end, TILE.EVEN)
    as_keys = as_queries if SYMMETRIC else load_side(keys, rows, row_end, TILE.EVEN)
    weights, of_reverse = weigh_self_pairs(
        logits, reverse, upstream, of_rows, of_cols, SYMMETRIC, FOLD
    )
    weights = keep_both_ways(
        weights, of_reverse, products, queries, as_queries, keys, as_keys,
        rows, cols, row_end, col_end, SYMMETRIC, TILE.EVEN,
    )  # fmt: skip
    store_weights(W, weights, first_row, first_col, row_start, row_end, col_start, pitch, TILE)


class Blocks:
    """The blocks of W, one after the other in the same memory."""

    def __init__(self, problem: Problem, slabs: Slabs):
        self.problem = problem
        rows, cols = min(slabs.row_step, slabs.rows), min(slabs.col_step, slabs.cols)
        self.buffer = torch.empty(
            rows * _pitch(cols), dtype=problem.compute_dtype, device=problem.device
        )

    def write(
        self, weights_kernel, operands, rows: slice, cols: slice, *args, **constexprs
    ) -> Tensor:
        """W[rows, cols]; the kernel takes ``operands`` before W and ``args`` after it."""
        M, N = rows.stop - rows.start, cols.stop - cols.start
        pitch = _pitch(N)
        weights = self.buffer[: M * pitch].view(M, pitch)

        def run(config):
            programs = triton.cdiv(M, config.BLOCK_M) * triton.cdiv(N, config.BLOCK_N)
            self.problem.launch(
                weights_kernel, programs, config, *operands, weights, *args,
                rows.start, rows.stop, cols.start, cols.stop, pitch, M=M, N=N, **constexprs,
            )  # fmt: skip

        self.problem.with_config("weights", run)
        return weights[:, :N]


def _pitch(cols: int) -> int:
    """Elements of a row in memory: aligned rows, whatever their length."""
    return triton.cdiv(cols, 16) * 16


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a @ b`` in float32, whatever the factors' dtype."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


class Sums(NamedTuple):
    """What a visit found for the rows of one side, in parts."""

    rows: Tensor  # the other side's, weighted, [parts, R, width]
    weights: Tensor | None  # the weights, where their sum is a bias's gradient, [parts, R]

    @classmethod
    def zeros(cls, problem: Problem, R: int, trains_bias: bool) -> Sums:
        rows = problem.full((1, R, problem.width), 0.0)
        return cls(rows, problem.full((1, R), 0.0) if trains_bias else None)

    def add(self, part: slice, weights: Tensor, other: Tensor) -> None:
        """A block of W, or of its transpose, and the other side's rows."""
        add_product(self.rows[0, part], weights, other)
        if self.weights is not None:
            self.weights[0, part] += weights.sum(1, dtype=torch.float32)


def row_col_slabs(problem: Problem, query, key, need_query: bool, need_key: bool):
    """``Sums`` for the queries and for the keys, in one part; None where they are not needed."""
    sums = [
        Sums.zeros(problem, len(side.rows), side.trains_bias) if need else None
        for side, need in ((query, need_query), (key, need_key))
    ]
    slabs = Slabs.of(problem.M, problem.N, problem.compute_dtype.itemsize)
    blocks = Blocks(problem, slabs)
    operands = query.rows, key.rows, problem.scale
    for rows, cols in slabs:
        weights = blocks.write(
            row_col_weights_kernel, operands, rows, cols,
            query.side, key.side, query.upstream, key.upstream, FOLD=problem.fold,
        )  # fmt: skip
        if sums[0] is not None:
            sums[0].add(rows, weights, key.rows[cols])
        if sums[1] is not None:
            sums[1].add(cols, weights.T, query.rows[rows])
    return sums
