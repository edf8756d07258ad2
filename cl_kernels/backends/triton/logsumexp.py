"""Log-sum-exps of the rows, and of rows and columns at once, of ``scale * Q @ K.T``.

A program owns BLOCK_M queries and visits a span of the keys. Whatever several programs find for
one row or column is written as partial log-sum-exps and combined in order: no atomics, so the
results repeat bit for bit.
"""

import torch
import triton
import triton.language as tl

from .launch import launch, spans, waves
from .problem import Problem
from .tiles import (
    LOG2E,
    drop_pairs,
    exponentials,
    finite_or_zero,
    kernel,
    load_ids,
    load_rows,
    load_vector,
    logarithm,
    resident_rows,
    round_like,
    start_maximum,
    store_column_sums,
    tile_products,
)


@kernel
def row_logsumexp_fwd_kernel(
    Q, K, SCALE, ROW, QID0, KID0, QID1, KID1, M, N, span, shift,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr, FIXED: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ROW[split, i] = log-sum-exp of row i over the split's span of keys."""
    blocks = tl.cdiv(M, BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_id0 = load_ids(QID0, rows, M, KEEP0, EVEN)
    row_id1 = load_ids(QID1, rows, M, KEEP1, EVEN)
    q = resident_rows(Q, first_row, M, D, EVEN, UPCAST, BLOCK_M, BLOCK_D)
    scale = tl.load(SCALE) * LOG2E
    maximum = start_maximum(shift, FIXED, BLOCK_M)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        products = tile_products(
            q, Q, K, first_row, first_col, M, N,
            D, EVEN, PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        logits = products * scale
        logits = drop_pairs(
            logits, float("-inf"), rows, cols, row_id0, row_id1, KID0, KID1,
            M, N, KEEP0, KEEP1, EVEN,
        )  # fmt: skip
        terms, shrink, maximum = exponentials(logits, maximum, FIXED, 1)
        total = total * shrink + tl.sum(terms, 1)
    offset = split.to(tl.int64) * M
    tl.store(ROW + offset + rows, logarithm(maximum, total), mask=rows < M)


@kernel
def row_logsumexp_mean_key_kernel(
    Q, K, SCALE, ROW, MEAN, TAINT_Q, TAINT_K, QID0, KID0, QID1, KID1, M, N, span,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same with a running maximum, and MEAN[split, i] = softmax-weighted mean of the keys."""
    blocks = tl.cdiv(M, BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_id0 = load_ids(QID0, rows, M, KEEP0, EVEN)
    row_id1 = load_ids(QID1, rows, M, KEEP1, EVEN)
    q = load_rows(Q, first_row, M, 0, D, EVEN, UPCAST, BLOCK_M, D)
    scale = tl.load(SCALE) * LOG2E
    maximum = start_maximum(0.0, False, BLOCK_M)
    total = tl.zeros((BLOCK_M,), tl.float32)
    weighted = tl.zeros((BLOCK_M, D), tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load_rows(K, first_col, N, 0, D, EVEN, UPCAST, BLOCK_N, D)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        if TAINT_K is not None:
            # Rows that are not finite were zeroed: their kept pairs are NaN, the others nothing.
            logits += load_vector(TAINT_K, cols, N, EVEN)[None, :]
            logits += load_vector(TAINT_Q, rows, M, EVEN)[:, None]
        logits = drop_pairs(
            logits, float("-inf"), rows, cols, row_id0, row_id1, KID0, KID1,
            M, N, KEEP0, KEEP1, EVEN,
        )  # fmt: skip
        terms, shrink, maximum = exponentials(logits, maximum, False, 1)
        total = total * shrink + tl.sum(terms, 1)
        terms = round_like(terms, K, UPCAST)
        weighted = tl.dot(terms, k, weighted * shrink[:, None], input_precision=PRECISION)
    offset = split.to(tl.int64) * M
    tl.store(ROW + offset + rows, logarithm(maximum, total), mask=rows < M)
    mean = weighted / tl.where(total == 0.0, 1.0, total)[:, None]
    mean += tl.sum(mean - mean, 1)[:, None]  # one NaN makes a row of them
    pointers = MEAN + (offset + first_row) * D
    pointers += tl.arange(0, BLOCK_M)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(pointers, mean, mask=(rows < M)[:, None])


@kernel
def row_col_logsumexp_fwd_kernel(
    Q, K, SCALE, ROW, MAXIMA, SUMS, QID0, KID0, QID1, KID1, M, N, span, shift,
    first_block, blocks,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr, FIXED: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ROW as above; MAXIMA[block, j] and SUMS[block, j]: column j's over one block of queries."""
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    first_row = (first_block + block) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_id0 = load_ids(QID0, rows, M, KEEP0, EVEN)
    row_id1 = load_ids(QID1, rows, M, KEEP1, EVEN)
    q = resident_rows(Q, first_row, M, D, EVEN, UPCAST, BLOCK_M, BLOCK_D)
    scale = tl.load(SCALE) * LOG2E
    maximum = start_maximum(shift, FIXED, BLOCK_M)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        products = tile_products(
            q, Q, K, first_row, first_col, M, N,
            D, EVEN, PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        logits = products * scale
        logits = drop_pairs(
            logits, float("-inf"), rows, cols, row_id0, row_id1, KID0, KID1,
            M, N, KEEP0, KEEP1, EVEN,
        )  # fmt: skip
        terms, shrink, maximum = exponentials(logits, maximum, FIXED, 1)
        total = total * shrink + tl.sum(terms, 1)
        offsets = block.to(tl.int64) * N + cols
        store_column_sums(MAXIMA, SUMS, offsets, cols < N, logits, terms, FIXED, BLOCK_N)
    tl.store(ROW + split.to(tl.int64) * M + rows, logarithm(maximum, total), mask=rows < M)


@kernel
def combine_logsumexp_kernel(
    MAXIMA, SUMS, OUT, N, count, shift,
    FIXED: tl.constexpr, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """OUT[n] = log-sum-exp of what ``count`` parts found, in order, after OUT[n] if ACCUMULATE.

    A part is a base-2 maximum (FIXED: the shift) and a sum of exponentials above it or, where
    SUMS is None, a log-sum-exp in MAXIMA.
    """
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    maximum = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if ACCUMULATE:
        maximum = load_vector(OUT, cols, N, False) * LOG2E
        total = tl.where(maximum == float("-inf"), 0.0, 1.0)
    for part in range(count):
        offset = (tl.zeros((), tl.int64) + part) * N
        if FIXED:
            of_part = tl.zeros((BLOCK,), tl.float32) + shift
        else:
            of_part = load_vector(MAXIMA + offset, cols, N, False)
        if SUMS is None:
            of_part *= LOG2E
            terms = tl.where(of_part == float("-inf"), 0.0, 1.0)
        else:
            terms = load_vector(SUMS + offset, cols, N, False)
        new_maximum = tl.maximum(maximum, of_part)
        above = finite_or_zero(new_maximum)
        total = total * tl.exp2(maximum - above) + terms * tl.exp2(of_part - above)
        maximum = new_maximum
    tl.store(OUT + cols, logarithm(maximum, total), mask=cols < N)


def combine(out, count, maxima, sums=None, shift=0.0, accumulate=False):
    """``out`` [N] = log-sum-exp over the first ``count`` rows of ``maxima`` and ``sums`` [P, N]."""
    N = out.shape[0]
    launch(
        combine_logsumexp_kernel, triton.cdiv(N, 256), (maxima, sums, out, N, count, shift),
        {"FIXED": maxima is None, "ACCUMULATE": accumulate, "BLOCK": 256},
    )  # fmt: skip
    return out


def combined_rows(problem, row):
    """Log-sum-exps [M] of those over spans, [splits, M]."""
    return row[0] if len(row) == 1 else combine(problem.empty(row.shape[1]), len(row), row)


class ColumnSums:
    """Base-2 column maxima and sums of exponentials of some row blocks, [P, N]."""

    def __init__(self, problem, parts: int, N: int):
        self.problem = problem
        self.maxima = None if problem.fixed else problem.empty(parts, N)
        self.sums = problem.empty(parts, N)

    def clear(self):
        self.sums.zero_()
        if self.maxima is not None:
            self.maxima.fill_(-torch.inf)

    def add_to(self, out, count: int, accumulate: bool):
        combine(out, count, self.maxima, self.sums, self.problem.shift, accumulate)


def row_logsumexp(query, key, scale, *options):
    problem = Problem(query, key, scale, *options)
    M, N = problem.M, problem.N
    if M == 0 or N == 0:
        return problem.full((M,), -torch.inf)
    q, k = problem.logit_operands

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        splits, span = spans(blocks, N, config, problem.device, per_processor=8)
        row = problem.empty(splits, M)
        problem.launch(
            row_logsumexp_fwd_kernel, splits * blocks, config,
            q, k, scale, row, *problem.ids, M, N, span, problem.shift,
        )  # fmt: skip
        return combined_rows(problem, row)

    return problem.with_config("row_forward", run)


def row_col_logsumexp(query, key, scale, *options):
    problem = Problem(query, key, scale, *options)
    M, N = problem.M, problem.N
    if M == 0 or N == 0:
        return problem.full((M,), -torch.inf), problem.full((N,), -torch.inf)
    q, k = problem.logit_operands

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        parts = list(waves(blocks, N))
        splits, span = spans(parts[0][1], N, config, problem.device, per_processor=8)
        row, col = problem.empty(splits, M), problem.empty(N)
        partial = ColumnSums(problem, parts[0][1], N)
        for first, count in parts:
            problem.launch(
                row_col_logsumexp_fwd_kernel, splits * count, config,
                q, k, scale, row, partial.maxima, partial.sums,
                *problem.ids, M, N, span, problem.shift, first, count,
            )  # fmt: skip
            partial.add_to(col, count, accumulate=first > 0)
        return combined_rows(problem, row), col

    return problem.with_config("row_col_forward", run)


def fused_mean_key(problem):
    """Log-sum-exp and weighted mean key of each row, for widths that one tile holds."""
    M, N, D = problem.M, problem.N, problem.D
    q, k, taint_q, taint_k = problem.product_operands

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        splits, span = spans(blocks, N, config, problem.device, per_processor=2)
        row, mean = problem.empty(splits, M), problem.empty(splits, M, problem.width)
        problem.launch(
            row_logsumexp_mean_key_kernel, splits * blocks, config,
            q, k, problem.scale, row, mean, taint_q, taint_k,
            *problem.ids, M, N, span,
        )  # fmt: skip
        if splits == 1:
            return row[0], mean[0, :, :D].contiguous()
        lse = combined_rows(problem, row)
        # A span without a kept key has the weight exp(-inf); so has every span of an empty row.
        share = (row - lse.masked_fill(lse == -torch.inf, 0.0)).exp()  # [splits, M]
        return lse, (mean[:, :, :D] * share[:, :, None]).sum(0)

    return problem.with_config("mean_key", run)
