"""What becomes of a tile of logits: the part of a kernel that is one statistic's own.

A fold is a set of functions that kernels take as one constexpr FOLD. Its state is a tuple of
vectors, float32 or integers, a number of each for each row. Logits are multiplied by its ``unit``;
that of a pair that is dropped is -inf.

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
    unit: float  # log2(e) for exponentials in base 2
    nothing: tuple[float, ...]  # the state of rows of which nothing was seen; integers: counts
    empty: tuple[float, ...]  # and their values
    begin: Any
    add_tile: Any
    store_cols: Any
    merge: Any
    end: Any
    load: Any
    weight: Any

    @property
    def is_sum(self) -> bool:
        """Of terms that are made of one logit each: it takes more registers than an exponential."""
        return self.load is load_grad

    @property
    def cache_key(self) -> str:
        """Triton asks constexprs for it: a kernel is compiled again where its fold has changed."""
        keys = (part.cache_key for part in self if hasattr(part, "cache_key"))
        return "-".join((str(self.unit), *keys))


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


# sum_j log(1 + exp(z_ij)). State: a sum of more terms than float32 could add up one by one, and
# what rounding took from it.


@triton.jit
def add_exactly(total, lost, x):
    """``total + x``, and ``lost`` with what rounding takes from that sum (Knuth, "The Art of
    Computer Programming" 2, 4.2.2, theorem B)."""
    new = total + x
    added = new - total
    return new, lost + ((total - (new - added)) + (x - added))


@triton.jit
def corrected(total, lost):
    return tl.where(tl.abs(total) == float("inf"), total, total + lost)


@triton.jit
def log2_1p(u):
    """log2(1 + u) for u in [0, 1]; 1 + u would round small ones away."""
    # A minimax polynomial for log2(1 + u) / u: 3e-8 relative.
    p = 0.007549172733 * u - 0.04256702587
    p = p * u + 0.1128561348
    p = p * u - 0.1971189231
    p = p * u + 0.2756413817
    p = p * u - 0.3584084809
    p = p * u + 0.4806929529
    p = p * u - 0.7213401794
    p = p * u + 1.442695022
    return p * u


@triton.jit
def softplus_terms(logits):
    small = tl.exp2(-tl.abs(logits))
    return tl.where(logits <= 0, 0.0, logits) + log2_1p(small)  # a NaN is not <= 0


@triton.jit
def softplus_begin(BLOCK: tl.constexpr):
    return tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)


@triton.jit
def softplus_add_tile(state, logits, shift):
    return add_exactly(state[0], state[1], tl.sum(softplus_terms(logits), 1))


@triton.jit
def softplus_store_cols(OUTS, offsets, mask, logits, shift):
    tl.store(OUTS[0] + offsets, tl.sum(softplus_terms(logits), 0), mask=mask)
    tl.store(OUTS[1] + offsets, tl.zeros(offsets.shape, tl.float32), mask=mask)


@triton.jit
def softplus_merge(state, other, shift):
    total, lost = add_exactly(state[0], state[1], other[0])
    return total, lost + other[1]


@triton.jit
def softplus_end(state, shift):
    return (corrected(state[0], state[1]) * LN2,)


@triton.jit
def load_grad(side, rows, bound, EVEN: tl.constexpr):
    """The weights of sums need no value."""
    grad = load_vector(side.grad, rows, bound, EVEN)
    return grad, tl.zeros(rows.shape, tl.float32)


@triton.jit
def softplus_weight(logits, nothing):
    # Not `nothing - logits`: CUDA 12.8's assembler then takes the products of wide rows for zero.
    return 1.0 / (1.0 + tl.exp2(-(logits + nothing)))


# sum_j max(z_ij, 0) and how many z_ij are above 0, which are in natural units: what is exactly 0
# stays so. State: as of sums above, and the count.


@triton.jit
def hinge_terms(logits):
    return tl.where(logits <= 0, 0.0, logits)  # a NaN is not <= 0


@triton.jit
def hinge_begin(BLOCK: tl.constexpr):
    zeros = tl.zeros((BLOCK,), tl.float32)
    return zeros, zeros, tl.zeros((BLOCK,), tl.int32)


@triton.jit
def hinge_add_tile(state, logits, shift):
    total, lost = add_exactly(state[0], state[1], tl.sum(hinge_terms(logits), 1))
    return total, lost, state[2] + tl.sum((logits > 0).to(tl.int32), 1)


@triton.jit
def hinge_store_cols(OUTS, offsets, mask, logits, shift):
    tl.store(OUTS[0] + offsets, tl.sum(hinge_terms(logits), 0), mask=mask)
    tl.store(OUTS[1] + offsets, tl.zeros(offsets.shape, tl.float32), mask=mask)
    tl.store(OUTS[2] + offsets, tl.sum((logits > 0).to(tl.int32), 0), mask=mask)


@triton.jit
def hinge_merge(state, other, shift):
    total, lost = add_exactly(state[0], state[1], other[0])
    return total, lost + other[1], state[2] + other[2]


@triton.jit
def hinge_end(state, shift):
    return corrected(state[0], state[1]), state[2]


@triton.jit
def hinge_weight(logits, nothing):
    logits += nothing
    return tl.where(logits > 0, 1.0, tl.where(logits <= 0, 0.0, logits))


LOGSUMEXP = Fold(
    unit=LOG2E.value, nothing=(-math.inf, 0.0), empty=(-math.inf,),
    begin=logsumexp_begin, add_tile=logsumexp_add_tile, store_cols=logsumexp_store_cols,
    merge=logsumexp_merge, end=logsumexp_end,
    load=logsumexp_load, weight=logsumexp_weight,
)  # fmt: skip
BOUNDED_LOGSUMEXP = LOGSUMEXP._replace(
    nothing=(0.0,),
    begin=bounded_begin, add_tile=bounded_add_tile, store_cols=bounded_store_cols,
    merge=bounded_merge, end=bounded_end,
)  # fmt: skip
SOFTPLUS_SUM = Fold(
    unit=LOG2E.value, nothing=(0.0, 0.0), empty=(0.0,),
    begin=softplus_begin, add_tile=softplus_add_tile, store_cols=softplus_store_cols,
    merge=softplus_merge, end=softplus_end,
    load=load_grad, weight=softplus_weight,
)  # fmt: skip
HINGE_SUM = Fold(
    unit=1.0, nothing=(0.0, 0.0, 0), empty=(0.0, 0),
    begin=hinge_begin, add_tile=hinge_add_tile, store_cols=hinge_store_cols,
    merge=hinge_merge, end=hinge_end,
    load=load_grad, weight=hinge_weight,
)  # fmt: skip

# By the name of a statistic's fold: for any logits, and for those that are known to be bounded.
FOLDS = {
    "logsumexp": (LOGSUMEXP, BOUNDED_LOGSUMEXP),
    "softplus_sum": (SOFTPLUS_SUM, SOFTPLUS_SUM),
    "hinge_sum": (HINGE_SUM, HINGE_SUM),
}
