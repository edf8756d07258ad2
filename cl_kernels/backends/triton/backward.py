"""Gradients of statistics of rows and columns.

``W_ij = g_i w(z_ij, r_i) + h_j w(z_ij, c_j)`` weighs the pairs; the gradients are ``scale * W @ K``
and ``scale * W.T @ Q``, that of the scale ``<Q, W @ K>``. A visit has an owner side X, whose sums
stay in its programs' registers, and an other side Y, whose sums are added to memory: without order,
so deterministic mode visits the tiles once for each side instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pairs import Side, drop_pairs, load_side, pair_logits
from .prepare import finish_gradient
from .problem import Problem
from .slabs import Sums, row_col_slabs
from .tiles import kernel, load_rows, round_like, row_pointers
from .weights import Upstream, load_upstream, weigh_pairs


@kernel
def row_col_bwd_kernel(
    X, Y, SCALE, SUM_X, BIAS_X, SUM_Y, BIAS_Y, x_side, y_side, x_upstream, y_upstream, M, N, span,
    FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """SUM_X[split] = W @ Y over a span of Y; SUM_Y += W.T @ X, unless it is None.

    BIAS_X and BIAS_Y likewise of W's own sums, over rows and over columns, or None.
    """
    blocks = tl.cdiv(M, TILE.BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    held = load_side(x_side, rows, M, TILE.EVEN)
    of_rows = load_upstream(x_upstream, rows, M, FOLD, TILE.EVEN)
    x = load_rows(X, first_row, M, 0, TILE.BLOCK_M, TILE.D, TILE)
    scale = tl.load(SCALE) * FOLD.unit
    sums = tl.full((TILE.BLOCK_M, TILE.D), 0.0, tl.float32)
    of_bias = tl.full((TILE.BLOCK_M,), 0.0, tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), TILE.BLOCK_N):
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        y = load_rows(Y, first_col, N, 0, TILE.BLOCK_N, TILE.D, TILE)
        of_cols = load_upstream(y_upstream, cols, N, FOLD, TILE.EVEN)
        products = tl.dot(x, tl.trans(y), input_precision=TILE.PRECISION)
        logits = pair_logits(products, scale, x_side, held, y_side, cols, N, FOLD.unit, TILE.EVEN)
        weights = weigh_pairs(logits, x_upstream, of_rows, y_upstream, of_cols, FOLD)
        weights = drop_pairs(
            weights, 0.0, products, x_side, held, y_side, rows, cols, M, N, TILE.EVEN
        )
        if BIAS_X is not None:
            of_bias += tl.sum(weights, 1)
        if BIAS_Y is not None:
            tl.atomic_add(BIAS_Y + cols, tl.sum(weights, 0), mask=cols < N, sem="relaxed")
        weights = round_like(weights, X, TILE.UPCAST)
        sums = tl.dot(weights, y, sums, input_precision=TILE.PRECISION)
        if SUM_Y is not None:
            part = tl.dot(tl.trans(weights), x, input_precision=TILE.PRECISION)  # [BLOCK_N, D]
            pointers = row_pointers(SUM_Y, first_col, TILE.BLOCK_N, TILE.D)
            tl.atomic_add(pointers, part, mask=(cols < N)[:, None], sem="relaxed")
    first = split.to(tl.int64) * M + first_row
    tl.store(row_pointers(SUM_X, first, TILE.BLOCK_M, TILE.D), sums, mask=(rows < M)[:, None])
    if BIAS_X is not None:
        tl.store(BIAS_X + split.to(tl.int64) * M + rows, of_bias, mask=rows < M)


class Operand(NamedTuple):
    """The queries or the keys of a visit."""

    rows: Tensor  # [R, width]
    side: Side
    upstream: Upstream
    trains_bias: bool


OfSide = tuple[Tensor, Tensor] | None  # upstream gradient and value; None: no term in W


def operands(
    problem: Problem, of_rows: OfSide, of_cols: OfSide, train_biases=(False, False)
) -> tuple[Operand, Operand]:
    gain = weight_gain(problem, of_rows, of_cols)
    query, key, *taints = problem.product_operands
    upstreams = []
    for given, taint in zip((of_rows, of_cols), taints, strict=True):
        grad, value = (None, None) if given is None else (given[0].contiguous(), given[1])
        upstreams.append(Upstream(grad, value, taint, gain))
    each = zip((query, key), problem.product_sides, upstreams, train_biases, strict=True)
    queries, keys = (Operand(*of_side) for of_side in each)
    return queries, keys


def weight_gain(problem: Problem, *upstreams: OfSide) -> Tensor | None:
    """A power of two that keeps float16 weights away from both ends of float16's range.

    Weights are at most the upstream gradients in size. None where the dtype has float32's range.
    """
    if problem.compute_dtype != torch.float16:
        return None
    largest = [
        grad.nan_to_num(0.0, 0.0, 0.0).masked_fill(value == -torch.inf, 0.0).abs().amax()
        for grad, value in filter(None, upstreams)
    ]
    bound = torch.stack(largest).amax().clamp(2.0**-100, 2.0**100)
    return torch.exp2(12.0 - bound.log2().ceil())


def visit(problem: Problem, x: Operand, y: Operand, both: bool):
    """``Sums`` for the rows of X and, if ``both``, for those of Y; None otherwise."""
    M, N = len(x.rows), len(y.rows)

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        splits, span = problem.spans(blocks, config, per_processor=2, N=N)
        sum_x = problem.empty(splits, M, problem.width)
        bias_x = problem.empty(splits, M) if x.trains_bias else None
        of_x = Sums(sum_x, bias_x)
        of_y = Sums.zeros(problem, N, y.trains_bias) if both else None
        problem.launch(
            row_col_bwd_kernel, splits * blocks, config, x.rows, y.rows, problem.scale,
            *of_x, *(of_y or (None, None)), x.side, y.side, x.upstream, y.upstream,
            M, N, span, M=M, N=N, FOLD=problem.fold,
        )  # fmt: skip
        return of_x, of_y

    return problem.with_config("backward_both" if both else "backward", run)


def weighted_sums(problem: Problem, query: Operand, key: Operand, needs):
    """``Sums`` for the queries and for the keys; None where they are not needed."""
    want_query, want_key = needs
    if problem.wide:
        return row_col_slabs(problem, query, key, want_query, want_key)
    if want_query and want_key and not problem.deterministic:
        if problem.M >= problem.N:
            return visit(problem, query, key, both=True)
        return visit(problem, key, query, both=True)[::-1]
    return (
        visit(problem, query, key, both=False)[0] if want_query else None,
        visit(problem, key, query, both=False)[0] if want_key else None,
    )


def row_col_backward(problem: Problem, of_rows: OfSide, of_cols: OfSide, needs):
    """Gradients of queries, keys, scale and the biases of both."""
    need_query, need_key, *need_biases = needs
    if problem.M == 0 or problem.N == 0:
        shapes = problem.query.shape, problem.key.shape, (), (problem.M,), (problem.N,)
        each = zip(shapes, (need_query, need_key, True, *need_biases), strict=True)
        return tuple(problem.full(shape if need else (0,), 0.0) for shape, need in each)
    of_query, of_key = (need or bias for need, bias in zip(needs[:2], need_biases, strict=True))
    query, key = operands(problem, of_rows, of_cols, need_biases)
    # The scale's gradient needs one of them.
    by_query = of_query or not of_key
    sum_query, sum_key = weighted_sums(problem, query, key, (by_query, of_key))
    grad_query, products, query_bias = finished(problem, query, sum_query)
    grad_key, products_of_key, key_bias = finished(problem, key, sum_key)
    if sum_query is None:
        products = products_of_key
    grad_query = grad_query if need_query else problem.empty(0)
    grad_key = grad_key if need_key else problem.empty(0)
    return grad_query, grad_key, products.sum(), query_bias, key_bias


def finished(problem: Problem, side: Operand, sums: Sums | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of a side: its gradient, numbers whose sum is the scale's, and its bias's gradient; each has
    memory of its own, and is empty where it was not made."""
    if sums is None:
        return problem.empty(0), problem.empty(0), problem.empty(0)
    gain = side.upstream.gain
    grad, products = finish_gradient(sums.rows, side.rows, problem.scale, gain, problem.D)
    if sums.weights is None:
        return grad, products, problem.empty(0)
    bias = sums.weights.sum(0)
    return grad, products, bias if gain is None else bias / gain
