"""Log-sum-exp of each row and its softmax-weighted mean of the keys, in one visit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .backward import operands
from .folds import logsumexp_begin, logsumexp_end, logsumexp_terms
from .forward import row_col_forward
from .pairs import drop_pairs, load_side, pair_logits
from .problem import Problem
from .slabs import row_col_slabs
from .tiles import LOG2E, kernel, load_rows, load_vector, round_like, row_pointers


@kernel
def row_weighted_key_kernel(
    X, Y, SCALE, ROW, MEAN, TAINT_X, TAINT_Y, queries, keys, M, N, span, TILE: tl.constexpr
):
    """ROW[split, i] = log-sum-exp of row i over a span of keys, and MEAN[split, i] = mean of these
    keys, weighted by their softmax."""
    blocks = tl.cdiv(M, TILE.BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    held = load_side(queries, rows, M, TILE.EVEN)
    x = load_rows(X, first_row, M, 0, TILE.BLOCK_M, TILE.D, TILE)
    scale = tl.load(SCALE) * LOG2E
    maximum, total = logsumexp_begin(TILE.BLOCK_M)
    weighted = tl.full((TILE.BLOCK_M, TILE.D), 0.0, tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), TILE.BLOCK_N):
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        y = load_rows(Y, first_col, N, 0, TILE.BLOCK_N, TILE.D, TILE)
        products = tl.dot(x, tl.trans(y), input_precision=TILE.PRECISION)
        logits = pair_logits(products, scale, queries, held, keys, cols, N, LOG2E, TILE.EVEN)
        if TAINT_Y is not None:
            # Rows that are not finite were zeroed: their kept pairs are NaN, the others nothing.
            logits += load_vector(TAINT_Y, cols, N, TILE.EVEN)[None, :]
            logits += load_vector(TAINT_X, rows, M, TILE.EVEN)[:, None]
        logits = drop_pairs(
            logits, float("-inf"), products, queries, held, keys, rows, cols, M, N, TILE.EVEN
        )
        terms, shrink, maximum = logsumexp_terms((maximum, total), logits)
        total = total * shrink + tl.sum(terms, 1)
        terms = round_like(terms, Y, TILE.UPCAST)
        weighted = tl.dot(terms, y, weighted * shrink[:, None], input_precision=TILE.PRECISION)
    offset = split.to(tl.int64) * M
    lse = logsumexp_end((maximum, total), 0.0)[0]
    tl.store(ROW + offset + rows, lse, mask=rows < M)
    mean = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    mean += tl.sum(mean - mean, 1)[:, None]  # one NaN makes a row of them
    pointers = row_pointers(MEAN, offset + first_row, TILE.BLOCK_M, TILE.D)
    tl.store(pointers, mean, mask=(rows < M)[:, None])


def row_weighted_key(problem: Problem) -> tuple[Tensor, Tensor]:
    if problem.M == 0 or problem.N == 0:
        return problem.full((problem.M,), -torch.inf), problem.full(problem.query.shape, 0.0)
    fused = problem.width <= configs.MEAN_KEY_KNEE[problem.kind] and not problem.guided
    return (_fused if fused else _slabs)(problem)


def _fused(problem: Problem) -> tuple[Tensor, Tensor]:
    M, N, D = problem.M, problem.N, problem.D
    q, k, taint_q, taint_k = problem.product_operands

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        splits, span = problem.spans(blocks, config, per_processor=2)
        row, mean = problem.empty(splits, M), problem.empty(splits, M, problem.width)
        problem.launch(
            row_weighted_key_kernel, splits * blocks, config,
            q, k, problem.scale, row, mean, taint_q, taint_k, *problem.product_sides, M, N, span,
        )  # fmt: skip
        if splits == 1:
            return row[0], mean[0, :, :D].contiguous()
        lse = row.logsumexp(0)
        # A span without a kept key has the weight exp(-inf); so has every span of an empty row.
        share = (row - lse.masked_fill(lse == -torch.inf, 0.0)).exp()  # [splits, M]
        return lse, (mean[:, :, :D] * share[:, :, None]).sum(0)

    return problem.with_config("mean_key", run)


def _slabs(problem: Problem) -> tuple[Tensor, Tensor]:
    """The mean key is the gradient of the log-sum-exp by the unscaled query."""
    (lse,) = row_col_forward(problem, both=False)
    query, key = operands(problem, (torch.ones_like(lse), lse), None)
    sums, _ = row_col_slabs(problem, query, key, True, False)
    assert sums is not None
    mean, gain = sums.rows[0, :, : problem.D], query.upstream.gain
    return lse, mean.contiguous() if gain is None else mean / gain
