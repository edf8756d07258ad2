"""Gradients of log-sum-exps of rows and columns.

``W_ij = g_i exp(s_ij - r_i) + h_j exp(s_ij - c_j)`` weighs the pairs; the gradients are
``scale * W @ K`` and ``scale * W.T @ Q``, that of the scale ``<Q, W @ K>``. A visit has an owner
side X, whose sums stay in its programs' registers, and an other side Y, whose sums are added to
memory: without order, so deterministic mode visits the tiles once for each side instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .ids import Ids
from .launch import spans
from .logsumexp import fused_mean_key, row_logsumexp
from .prepare import finish_gradient
from .problem import Problem
from .slabs import row_col_slabs
from .tiles import (
    LOG2E,
    drop_pairs,
    kernel,
    load_ids,
    load_rows,
    round_like,
    upstream,
    weigh_pairs,
)


@kernel
def row_col_logsumexp_bwd_kernel(
    X, Y, SCALE, SUM_X, SUM_Y, GX, RX, TX, GY, RY, TY, GAIN,
    XID0, YID0, XID1, YID1, M, N, span,
    D: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """SUM_X[split] = W @ Y over a span of Y; SUM_Y += W.T @ X, unless it is None.

    GX, RX: upstream gradient and log-sum-exp of X's rows, None if W lacks their term; GY, RY of
    Y's. TX, TY: taints (NaN for a row that was zeroed, else zero), None if none was.
    """
    blocks = tl.cdiv(M, BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_id0 = load_ids(XID0, rows, M, KEEP0, EVEN)
    row_id1 = load_ids(XID1, rows, M, KEEP1, EVEN)
    gx, rx, tx = upstream(GX, RX, TX, GAIN, rows, M, EVEN)
    x = load_rows(X, first_row, M, 0, D, EVEN, UPCAST, BLOCK_M, D)
    scale = tl.load(SCALE) * LOG2E
    sums = tl.zeros((BLOCK_M, D), tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        y = load_rows(Y, first_col, N, 0, D, EVEN, UPCAST, BLOCK_N, D)
        gy, ry, ty = upstream(GY, RY, TY, GAIN, cols, N, EVEN)
        logits = tl.dot(x, tl.trans(y), input_precision=PRECISION) * scale
        weights = weigh_pairs(
            logits, gx, rx, tx, gy, ry, ty, GX is not None, GY is not None, TX is not None
        )
        weights = drop_pairs(
            weights, 0.0, rows, cols, row_id0, row_id1, YID0, YID1,
            M, N, KEEP0, KEEP1, EVEN,
        )  # fmt: skip
        weights = round_like(weights, X, UPCAST)
        sums = tl.dot(weights, y, sums, input_precision=PRECISION)
        if SUM_Y is not None:
            part = tl.dot(tl.trans(weights), x, input_precision=PRECISION)  # [BLOCK_N, D]
            pointers = SUM_Y + (tl.zeros((), tl.int64) + first_col) * D
            pointers += tl.arange(0, BLOCK_N)[:, None] * D + tl.arange(0, D)[None, :]
            tl.atomic_add(pointers, part, mask=(cols < N)[:, None], sem="relaxed")
    pointers = SUM_X + (split.to(tl.int64) * M + first_row) * D
    pointers += tl.arange(0, BLOCK_M)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(pointers, sums, mask=(rows < M)[:, None])


@dataclass
class Side:
    """The queries or the keys of a visit; ``grad`` is None where W has no term of theirs."""

    rows: Tensor  # [R, width]
    taint: Tensor | None  # [R]
    grad: Tensor | None  # [R]
    lse: Tensor | None  # [R]
    ids: Ids


def sides(problem: Problem, of_rows, of_cols) -> tuple[Side, Side]:
    query, key, taint_query, taint_key = problem.product_operands
    of_rows, of_cols = (
        (grad if grad is None else grad.contiguous(), lse) for grad, lse in (of_rows, of_cols)
    )
    return (
        Side(query, taint_query, *of_rows, problem.query_ids),
        Side(key, taint_key, *of_cols, problem.key_ids),
    )


def weight_gain(problem: Problem, *upstreams) -> Tensor | None:
    """A power of two that keeps float16 weights away from both ends of float16's range.

    Weights are at most the upstream gradients in size. None where the dtype has float32's range.
    """
    if problem.compute_dtype != torch.float16:
        return None
    largest = (
        torch.stack(
            [
                grad.nan_to_num(0.0, 0.0, 0.0).masked_fill(lse == -torch.inf, 0.0).abs().amax()
                for grad, lse in upstreams
                if grad is not None
            ]
        )
        .amax()
        .clamp(2.0**-100, 2.0**100)
    )
    return torch.exp2(12.0 - largest.log2().ceil())


def visit(problem: Problem, x: Side, y: Side, gain: Tensor | None, both: bool):
    """Sums of the weighted rows: of Y for each of X [splits, M, width] and, if ``both``, of X for
    each of Y [1, N, width]."""
    M, N = len(x.rows), len(y.rows)
    ids = [i for pair in zip(x.ids, y.ids, strict=True) for i in pair]

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        splits, span = spans(blocks, N, config, problem.device, per_processor=2)
        sum_x = problem.empty(splits, M, problem.width)
        sum_y = problem.full((1, N, problem.width), 0.0) if both else None
        problem.launch(
            row_col_logsumexp_bwd_kernel, splits * blocks, config,
            x.rows, y.rows, problem.scale, sum_x, sum_y,
            x.grad, x.lse, x.taint, y.grad, y.lse, y.taint, gain, *ids, M, N, span, M=M, N=N,
        )  # fmt: skip
        return sum_x, sum_y

    return problem.with_config("backward_both" if both else "backward", run)


def gradients(problem: Problem, of_rows, of_cols, need_query: bool, need_key: bool):
    """Gradients of queries, keys and scale; ``of_rows``, ``of_cols``: (grad, lse) or Nones."""
    if problem.M == 0 or problem.N == 0:
        return (
            problem.full(problem.query.shape if need_query else (0,), 0.0),
            problem.full(problem.key.shape if need_key else (0,), 0.0),
            problem.full((), 0.0),
        )
    query, key = sides(problem, of_rows, of_cols)
    gain = weight_gain(problem, of_rows, of_cols)
    want_key = need_key
    want_query = need_query or not need_key  # the scale's gradient needs one of them
    sum_query = sum_key = None
    if problem.wide:
        sum_query, sum_key = row_col_slabs(problem, query, key, gain, want_query, want_key)
    elif want_query and want_key and not problem.deterministic:
        if problem.M >= problem.N:
            sum_query, sum_key = visit(problem, query, key, gain, both=True)
        else:
            sum_key, sum_query = visit(problem, key, query, gain, both=True)
    else:
        if want_query:
            sum_query, _ = visit(problem, query, key, gain, both=False)
        if want_key:
            sum_key, _ = visit(problem, key, query, gain, both=False)
    # Results may not share memory: each starts with an empty tensor of its own.
    grad_query, grad_key, products = (problem.empty(0) for _ in range(3))
    if sum_key is not None:
        grad_key, products = finish_gradient(sum_key, key.rows, problem.scale, gain, problem.D)
    if sum_query is not None:
        grad_query, products = finish_gradient(
            sum_query, query.rows, problem.scale, gain, problem.D
        )
    return grad_query if need_query else problem.empty(0), grad_key, products.sum()


def row_logsumexp_backward(grad, lse, query, key, scale, *options):
    *options, need_query, need_key = options
    problem = Problem(query, key, scale, *options)
    return gradients(problem, (grad, lse), (None, None), need_query, need_key)


def row_col_logsumexp_backward(grad_row, grad_col, row, col, query, key, scale, *options):
    *options, need_query, need_key = options
    problem = Problem(query, key, scale, *options)
    return gradients(problem, (grad_row, row), (grad_col, col), need_query, need_key)


def row_logsumexp_mean_key(query, key, scale, *options):
    problem = Problem(query, key, scale, *options)
    M, N = problem.M, problem.N
    if M == 0 or N == 0:
        return problem.full((M,), -torch.inf), problem.full(query.shape, 0.0)
    if problem.width <= configs.MEAN_KEY_KNEE[problem.kind]:
        return fused_mean_key(problem)
    # The mean key is the gradient of the log-sum-exp by the unscaled query.
    lse = row_logsumexp(query, key, scale, *options)
    ones = torch.ones_like(lse)
    gain = weight_gain(problem, (ones, lse))
    rows, cols = sides(problem, (ones, lse), (None, None))
    sums, _ = row_col_slabs(problem, rows, cols, gain, True, False)
    assert sums is not None
    mean = sums[0, :, : problem.D]
    return lse, mean.contiguous() if gain is None else mean / gain
