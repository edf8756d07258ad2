"""What becomes of a tile of logits: the part of a kernel that is one statistic's own.

A fold is a set of functions that kernels take as one constexpr FOLD. Its state is a tuple of
float32 vectors, a number of each for each row. All logits are in base 2; that of a pair that is
dropped is -inf.

    begin(BLOCK) -> state                      of rows of which nothing was seen
    add_tile(state, logits, shift) -> state    and a tile of theirs
    store_cols(OUTS, offsets, mask, logits, shift)   stores the state of a tile's columns
    merge(state, other, shift) -> state        of what two programs saw
    end(state, shift) -> values                a tuple of the statistic's values
    load(side, rows, bound, EVEN) -> grad, stat      some rows' ``Upstream``, as weights need it
    weight(logits, stat) -> weights            d value / d logit, NaN where stat is

``shift`` is for logits that are known to be bounded: see ``BOUNDED_LOGSUMEXP``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from .tiles import LN2, LOG2E, load_vector


class Fold(NamedTuple):
    nothing: tuple[float, ...]  # the state of rows of which nothing was seen
    empty: tuple[float, ...]  # and their values
    begin: Any
    add_tile: Any
    store_cols: Any
    merge: Any
    end: Any
    load: Any
    weight: Any

    @property
    def cache_key(self) -> str:
        """Triton asks constexprs for it: a kernel is compiled again where its fold has changed."""
        return "-".join(part.cache_key for part in self if hasattr(part, "cache_key"))


@triton.jit
def finite_or_zero(x):
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


# log sum_j exp(z_ij) with a running maximum. State: maximum, sum of exponentials above it. An
# infinite logit does not make inf - inf of them.


@triton.jit
def logsumexp_begin(BLOCK: tl.constexpr):
    return tl.full((BLOCK,), float("-inf"), tl.float32), tl.zeros((BLOCK,), tl.float32)


@triton.jit
def logsumexp_terms(state, logits):
    """A tile's exponentials, by which factor what was summed before shrinks, and the new maximum:
    for sums that are weighted too."""
    maximum = tl.maximum(state[0], tl.max(logits, 1))
    shift = finite_or_zero(maximum)
    shrink = tl.exp2(state[0] - shift)
    return tl.exp2(logits - shift[:, None]), shrink, maximum


@triton.jit
def logsumexp_add_tile(state, logits, shift):
    terms, shrink, maximum = logsumexp_terms(state, logits)
    return maximum, state[1] * shrink + tl.sum(terms, 1)


@triton.jit
def logsumexp_store_cols(OUTS, offsets, mask, logits, shift):
    maximum = tl.max(logits, 0)
    terms = tl.exp2(logits - finite_or_zero(maximum)[None, :])
    tl.store(OUTS[0] + offsets, maximum, mask=mask)  # before the sum: registers are few
    tl.store(OUTS[1] + offsets, tl.sum(terms, 0), mask=mask)


@triton.jit
def logsumexp_merge(state, other, shift):
    maximum = tl.maximum(state[0], other[0])
    above = finite_or_zero(maximum)
    return maximum, state[1] * tl.exp2(state[0] - above) + other[1] * tl.exp2(other[0] - above)


@triton.jit
def logsumexp_end(state, shift):
    return ((state[0] + tl.log2(state[1])) * LN2,)


@triton.jit
def logsumexp_load(side, rows, bound, EVEN: tl.constexpr):
    """A row with no kept pair has no gradient, whatever comes from upstream."""
    lse = load_vector(side.value, rows, bound, EVEN)
    empty = lse == float("-inf")
    grad = tl.where(empty, 0.0, load_vector(side.grad, rows, bound, EVEN))
    return grad, tl.where(empty, float("inf"), lse * LOG2E)


@triton.jit
def logsumexp_weight(logits, lse):
    return tl.exp2(logits - lse)


# The same of logits that are bounded: one shift serves all rows and columns, nothing is rescaled.
# State: sum of exponentials above the shift.


@triton.jit
def bounded_begin(BLOCK: tl.constexpr):
    return (tl.zeros((BLOCK,), tl.float32),)


@triton.jit
def bounded_add_tile(state, logits, shift):
    return (state[0] + tl.sum(tl.exp2(logits - shift), 1),)


@triton.jit
def bounded_store_cols(OUTS, offsets, mask, logits, shift):
    # The compiler finds that these are the rows' exponentials.
    tl.store(OUTS[0] + offsets, tl.sum(tl.exp2(logits - shift), 0), mask=mask)


@triton.jit
def bounded_merge(state, other, shift):
    return (state[0] + other[0],)


@triton.jit
def bounded_end(state, shift):
    return ((shift + tl.log2(state[0])) * LN2,)


LOGSUMEXP = Fold(
    nothing=(-math.inf, 0.0), empty=(-math.inf,),
    begin=logsumexp_begin, add_tile=logsumexp_add_tile, store_cols=logsumexp_store_cols,
    merge=logsumexp_merge, end=logsumexp_end,
    load=logsumexp_load, weight=logsumexp_weight,
)  # fmt: skip
BOUNDED_LOGSUMEXP = LOGSUMEXP._replace(
    nothing=(0.0,),
    begin=bounded_begin, add_tile=bounded_add_tile, store_cols=bounded_store_cols,
    merge=bounded_merge, end=bounded_end,
)  # fmt: skip

# By the name of a statistic's fold: for any logits, and for those that are known to be bounded.
FOLDS = {"logsumexp": (LOGSUMEXP, BOUNDED_LOGSUMEXP)}
