"""What a pair weighs in the gradient: each side's upstream gradient times the fold's weight."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import load_vector


class Upstream(NamedTuple):
    """What one side's rows bring to the weights; ``grad`` is None where they have no term."""

    grad: Any  # float32 [R]
    value: Any  # float32 [R]: the statistic's
    taint: Any  # float32 [R]: NaN for a row that was zeroed, else zero; None if none was
    gain: Any  # float32, one number: see ``weight_gain``; or None


@triton.jit
def load_upstream(side, rows, bound, FOLD: tl.constexpr, EVEN: tl.constexpr):
    """Some rows' upstream gradient, what their weights need and taint; zeros where None."""
    if side.grad is None:
        grad = tl.zeros(rows.shape, tl.float32)
        stat = grad
    else:
        grad, stat = FOLD.load(side, rows, bound, EVEN)
        if side.gain is not None:
            grad *= tl.load(side.gain)
    taint = grad
    if side.taint is not None:
        taint = load_vector(side.taint, rows, bound, EVEN)
    return grad, stat, taint


@triton.jit
def with_taint(side, stat, taint):
    """NaN where a row was zeroed, and with it all weights of the row."""
    return stat if side.taint is None else stat + taint


@triton.jit
def weigh_pairs(logits, x, of_rows, y, of_cols, FOLD: tl.constexpr):
    """Weights of a tile's pairs; ``of_rows``, ``of_cols``: what ``load_upstream`` has of x and y.

    A side without a term of its own has its taint added.
    """
    gx, sx, tx = of_rows
    gy, sy, ty = of_cols
    sx = with_taint(x, sx, tx)
    sy = with_taint(y, sy, ty)
    if x.grad is not None and y.grad is not None:
        weights = gx[:, None] * FOLD.weight(logits, sx[:, None])
        weights += gy[None, :] * FOLD.weight(logits, sy[None, :])
    elif x.grad is not None:
        weights = gx[:, None] * FOLD.weight(logits, sx[:, None])
        if y.taint is not None:
            weights += ty[None, :]
    else:
        weights = gy[None, :] * FOLD.weight(logits, sy[None, :])
        if x.taint is not None:
            weights += tx[:, None]
    return weights


@triton.jit
def weigh_self_pairs(
    logits, reverse, upstream, of_rows, of_cols, SYMMETRIC: tl.constexpr, FOLD: tl.constexpr
):
    """Weights of a Gram matrix's tile: the rows' terms, of (i, j), and the columns', of (j, i),
    whose logits are ``reverse``; SYMMETRIC: both together, twice."""
    if SYMMETRIC:
        weights = weigh_pairs(logits, upstream, of_rows, upstream, of_cols, FOLD)
        return weights, weights
    else:
        gx, sx, tx = of_rows
        gy, sy, ty = of_cols
        of_pair = gx[:, None] * FOLD.weight(logits, with_taint(upstream, sx, tx)[:, None])
        of_reverse = gy[None, :] * FOLD.weight(reverse, with_taint(upstream, sy, ty)[None, :])
        if upstream.taint is not None:
            of_pair += ty[None, :]
            of_reverse += tx[:, None]
        return of_pair, of_reverse
