"""Gradients of wide embeddings: square blocks of the weights, and matrix products with them.

A program that held its sums in registers would be too wide, so a kernel writes a block of W of at
most ``configs.SLAB_BYTES`` and cuBLAS multiplies it, adding to float32 sums. Square blocks move the
fewest of those sums, and no sum is added to by two programs at once: the results repeat bit for
bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .problem import Problem
from .tiles import (
    LOG2E,
    drop_pairs,
    in_range,
    kernel,
    load_ids,
    resident_rows,
    rounded,
    tile_products,
    upstream,
    weigh_pairs,
)

GROUP = 8  # row blocks whose tiles are neighbours, for the L2 cache


@kernel
def row_col_weights_kernel(
    X, Y, SCALE, W, GX, RX, TX, GY, RY, TY, GAIN, XID0, YID0, XID1, YID1,
    row_start, row_end, col_start, col_end, pitch,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr,
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
        x, X, Y, first_row, first_col, row_end, col_end,
        D, EVEN, PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    logits = products * (tl.load(SCALE) * LOG2E)
    gx, rx, tx = upstream(GX, RX, TX, GAIN, rows, row_end, EVEN)
    gy, ry, ty = upstream(GY, RY, TY, GAIN, cols, col_end, EVEN)
    weights = weigh_pairs(
        logits, gx, rx, tx, gy, ry, ty, GX is not None, GY is not None, TX is not None
    )
    weights = drop_pairs(
        weights, 0.0, rows, cols,
        load_ids(XID0, rows, row_end, KEEP0, EVEN), load_ids(XID1, rows, row_end, KEEP1, EVEN),
        YID0, YID1, row_end, col_end,
        KEEP0, KEEP1, EVEN,
    )  # fmt: skip
    store_weights(
        W, weights, first_row, first_col, row_start, row_end, col_start, col_end, pitch, UPCAST
    )


@triton.jit
def block_tile(
    row_start, row_end, col_start, col_end,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """First row and column of this program's tile of a block of W."""
    row_tiles = tl.cdiv(row_end - row_start, BLOCK_M)
    col_tiles = tl.cdiv(col_end - col_start, BLOCK_N)
    row, col = tl.swizzle2d(
        tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles, row_tiles, col_tiles, GROUP
    )
    return row_start + row * BLOCK_M, col_start + col * BLOCK_N


@triton.jit
def store_weights(
    W, weights, first_row, first_col, row_start, row_end, col_start, col_end, pitch,
    UPCAST: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, weights.shape[0])
    j = tl.arange(0, weights.shape[1])
    base = W + (tl.zeros((), tl.int64) + (first_row - row_start)) * pitch + (first_col - col_start)
    mask = in_range(first_row + i, first_col + j, row_end, col_end)
    weights = rounded(weights, W.dtype.element_ty, UPCAST)
    tl.store(base + (i[:, None] * pitch + j[None, :]), weights, mask=mask)


class Blocks:
    """The square blocks of W, one after the other in the same memory."""

    def __init__(self, problem: Problem, rows: int, cols: int):
        self.problem, self.rows, self.cols = problem, rows, cols
        size = problem.compute_dtype.itemsize
        edge = math.isqrt(configs.SLAB_BYTES // size)
        # A thin W has long blocks; equal blocks leave no sliver at the end.
        self.row_step = self._step(rows, max(edge, configs.SLAB_BYTES // size // cols))
        self.col_step = self._step(cols, max(edge, configs.SLAB_BYTES // size // self.row_step))
        if configs.SLAB_SHAPE is not None:
            self.row_step, self.col_step = configs.SLAB_SHAPE
        self.buffer: Tensor | None = None

    @staticmethod
    def _step(length: int, most: int) -> int:
        unit = configs.SLAB_UNIT
        most = max(unit, most // unit * unit)
        return triton.cdiv(triton.cdiv(length, triton.cdiv(length, most)), unit) * unit

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for r in range(0, self.rows, self.row_step):
            for c in range(0, self.cols, self.col_step):
                yield (
                    slice(r, min(r + self.row_step, self.rows)),
                    slice(c, min(c + self.col_step, self.cols)),
                )

    def upper(self) -> Iterator[tuple[slice, slice]]:
        """Those on and above the diagonal of a square W."""
        self.col_step = self.row_step
        return ((rows, cols) for rows, cols in self if cols.start >= rows.start)

    def write(
        self, weights_kernel, operands, rows: slice, cols: slice, *args, **constexprs
    ) -> Tensor:
        """W[rows, cols]; the kernel takes ``operands`` before W and ``args`` after it."""
        problem = self.problem
        M, N = rows.stop - rows.start, cols.stop - cols.start
        pitch = triton.cdiv(N, 16) * 16  # aligned rows, whatever their length
        if self.buffer is None:
            pitches = triton.cdiv(min(self.col_step, self.cols), 16) * 16
            self.buffer = torch.empty(
                min(self.row_step, self.rows) * pitches,
                dtype=problem.compute_dtype, device=problem.device,
            )  # fmt: skip
        weights = self.buffer[: M * pitch].view(M, pitch)

        def run(config):
            programs = triton.cdiv(M, config.BLOCK_M) * triton.cdiv(N, config.BLOCK_N)
            problem.launch(
                weights_kernel, programs, config, *operands, weights, *args,
                rows.start, rows.stop, cols.start, cols.stop, pitch,
                M=M, N=N, GROUP=GROUP, **constexprs,
            )  # fmt: skip

        problem.with_config("weights", run)
        return weights[:, :N]


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a @ b`` in float32, whatever the factors' dtype."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


def row_col_slabs(problem: Problem, query, key, gain, need_query: bool, need_key: bool):
    """Sums of the weighted keys for each query, and of the queries for each key: [1, R, width]."""
    sum_query = problem.full((1, *query.rows.shape), 0.0) if need_query else None
    sum_key = problem.full((1, *key.rows.shape), 0.0) if need_key else None
    blocks = Blocks(problem, problem.M, problem.N)
    for rows, cols in blocks:
        weights = blocks.write(
            row_col_weights_kernel, (query.rows, key.rows, problem.scale), rows, cols,
            query.grad, query.lse, query.taint, key.grad, key.lse, key.taint, gain, *problem.ids,
        )  # fmt: skip
        if sum_query is not None:
            add_product(sum_query[0, rows], weights, key.rows[cols])
        if sum_key is not None:
            add_product(sum_key[0, cols], weights.T, query.rows[rows])
    return sum_query, sum_key
