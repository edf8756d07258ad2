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

from .folds import Fold
from .pairs import Side, drop_pairs, load_side, pair_logits
from .prepare import finish_gradient
from .problem import Problem
from .slabs import row_col_slabs
from .tiles import LOG2E, kernel, load_rows, round_like, row_pointers
from .weights import Upstream, load_upstream, weigh_pairs


@kernel
def row_col_bwd_kernel(
    X, Y, SCALE, SUM_X, SUM_Y, x_side, y_side, x_upstream, y_upstream, M, N, span,
    FOLD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """SUM_X[split] = W @ Y over a span of Y; SUM_Y += W.T @ X, unless it is None."""
    blocks = tl.cdiv(M, TILE.BLOCK_M)
    split = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    held = load_side(x_side, rows, M, TILE.EVEN)
    of_rows = load_upstream(x_upstream, rows, M, FOLD, TILE.EVEN)
    x = load_rows(X, first_row, M, 0, TILE.BLOCK_M, TILE.D, TILE)
    scale = tl.load(SCALE) * LOG2E
    sums = tl.full((TILE.BLOCK_M, TILE.D), 0.0, tl.float32)
    for first_col in range(split * span, tl.minimum(N, (split + 1) * span), TILE.BLOCK_N):
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        y = load_rows(Y, first_col, N, 0, TILE.BLOCK_N, TILE.D, TILE)
        of_cols = load_upstream(y_upstream, cols, N, FOLD, TILE.EVEN)
        products = tl.dot(x, tl.trans(y), input_precision=TILE.PRECISION)
        logits = pair_logits(products, scale, x_side, held, y_side, cols, N, TILE.EVEN)
        weights = weigh_pairs(logits, x_upstream, of_rows, y_upstream, of_cols, FOLD)
        weights = drop_pairs(
            weights, 0.0, products, x_side, held, y_side, rows, cols, M, N, TILE.EVEN
        )
        weights = round_like(weights, X, TILE.UPCAST)
        sums = tl.dot(weights, y, sums, input_precision=TILE.PRECISION)
        if SUM_Y is not None:
            part = tl.dot(tl.trans(weights), x, input_precision=TILE.PRECISION)  # [BLOCK_N, D]
            pointers = row_pointers(SUM_Y, first_col, TILE.BLOCK_N, TILE.D)
            tl.atomic_add(pointers, part, mask=(cols < N)[:, None], sem="relaxed")
    first = split.to(tl.int64) * M + first_row
    tl.store(row_pointers(SUM_X, first, TILE.BLOCK_M, TILE.D), sums, mask=(rows < M)[:, None])


class Operand(NamedTuple):
    """The queries or the keys of a visit."""

    rows: Tensor  # [R, width]
    side: Side
    upstream: Upstream


OfSide = tuple[Tensor, Tensor] | None  # upstream gradient and value; None: no term in W


def operands(problem: Problem, of_rows: OfSide, of_cols: OfSide) -> tuple[Operand, Operand]:
    gain = weight_gain(problem, of_rows, of_cols)
    query, key, *taints = problem.product_operands
    upstreams = []
    for given, taint in zip((of_rows, of_cols), taints, strict=True):
        grad, value = (None, None) if given is None else (given[0].contiguous(), given[1])
        upstreams.append(Upstream(grad, value, taint, gain))
    queries, keys = problem.product_sides
    return Operand(query, queries, upstreams[0]), Operand(key, keys, upstreams[1])


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


def visit(problem: Problem, fold: Fold, x: Operand, y: Operand, both: bool):
    """Sums of the weighted rows: of Y for each of X [splits, M, width] and, if ``both``, of X for
    each of Y [1, N, width]."""
    M, N = len(x.rows), len(y.rows)

    def run(config):
        blocks = triton.cdiv(M, config.BLOCK_M)
        splits, span = problem.spans(blocks, config, per_processor=2, N=N)
        sum_x = problem.empty(splits, M, problem.width)
        sum_y = problem.full((1, N, problem.width), 0.0) if both else None
        problem.launch(
            row_col_bwd_kernel, splits * blocks, config,
            x.rows, y.rows, problem.scale, sum_x, sum_y, x.side, y.side, x.upstream, y.upstream,
            M, N, span, M=M, N=N, FOLD=fold,
        )  # fmt: skip
        return sum_x, sum_y

    return problem.with_config("backward_both" if both else "backward", run)


def weighted_sums(problem: Problem, fold: Fold, query: Operand, key: Operand, needs):
    """``W @ K`` and ``W.T @ Q``, in parts; None where it is not needed."""
    want_query, want_key = needs
    if problem.wide:
        return row_col_slabs(problem, fold, query, key, want_query, want_key)
    if want_query and want_key and not problem.deterministic:
        if problem.M >= problem.N:
            return visit(problem, fold, query, key, both=True)
        return visit(problem, fold, key, query, both=True)[::-1]
    return (
        visit(problem, fold, query, key, both=False)[0] if want_query else None,
        visit(problem, fold, key, query, both=False)[0] if want_key else None,
    )


def row_col_backward(problem: Problem, fold: Fold, of_rows: OfSide, of_cols: OfSide, needs):
    """Gradients of queries, keys and scale."""
    need_query, need_key = needs
    if problem.M == 0 or problem.N == 0:
        return (
            problem.full(problem.query.shape if need_query else (0,), 0.0),
            problem.full(problem.key.shape if need_key else (0,), 0.0),
            problem.full((), 0.0),
        )
    query, key = operands(problem, of_rows, of_cols)
    gain = query.upstream.gain
    needs = need_query or not need_key, need_key  # the scale's gradient needs one of them
    sum_query, sum_key = weighted_sums(problem, fold, query, key, needs)
    # Results may not share memory: each starts with an empty tensor of its own.
    grad_query, grad_key, products = (problem.empty(0) for _ in range(3))
    if sum_key is not None:
        grad_key, products = finish_gradient(sum_key, key.rows, problem.scale, gain, problem.D)
    if sum_query is not None:
        grad_query, products = finish_gradient(
            sum_query, query.rows, problem.scale, gain, problem.D
        )
    return grad_query if need_query else problem.empty(0), grad_key, products.sum()
