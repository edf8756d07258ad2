"""Buffers of survivors: pairs that passed a bound, as packed integers, row by row.

A packed pair is ``sortable(score) << 32 | (2**32 - 1 - index)``, where the bits of a float become
an integer of the same order and -0 becomes +0: larger is better, ties go to the smaller index, and
no two pairs are equal. A bound is such an integer too; pairs above it survive.
"""

import triton
import triton.language as tl

from .tiles import load_vector

# Below every pair of a finite score; the bound of a row of which fewer than k pairs are known.
LOWEST = tl.constexpr(-0x7F800000 << 32)
EMPTY = tl.constexpr(-(2**63))  # a place without a pair
HIGHEST = tl.constexpr(2**63 - 1)
LAST_INDEX = tl.constexpr(2**31 - 1)
CHUNK = tl.constexpr(8)  # survivors of a row that are worked on at a time; divides capacities
PIECE = tl.constexpr(32)  # columns of a tile that are searched at a time


@triton.jit
def pack(scores, indices):
    bits = (scores + 0.0).to(tl.int32, bitcast=True)
    sortable = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (sortable.to(tl.int64) << 32) | (0xFFFFFFFF - indices.to(tl.int64))


@triton.jit
def unpack_bound(bound):
    """(least, limit): a pair is above ``bound`` if its score is above ``least``, or is ``least``
    and its index is below ``limit``."""
    sortable = (bound >> 32).to(tl.int32)
    least = (sortable ^ ((sortable >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    limit = tl.minimum(0xFFFFFFFF - (bound & 0xFFFFFFFF), LAST_INDEX).to(tl.int32)
    # Just below +0 there is -0, which no pair has and which a comparison takes for +0.
    return least, tl.where(sortable == -1, LAST_INDEX, limit)


@triton.jit
def is_above(scores, indices, least, limit):
    return (scores > least) | ((scores == least) & (indices < limit))


@triton.jit
def any_of(flags):
    # Two dimensions: Triton 3.6 cannot compile for sm_100 what makes a scalar of a product's rows.
    return tl.max(tl.max(flags.to(tl.int32)[None, :], 1), 0) == 1


@triton.jit
def halves(tile):
    """A tile's left and right columns."""
    HALF: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (tile.shape[0], 2, HALF)), (0, 2, 1)))


@triton.jit
def store_pairs(scores, first_col, least, limit, inside, BUFFERS):
    """Stores all pairs of a tile, EMPTY where they are not above the rows' bounds."""
    WIDTH: tl.constexpr = scores.shape[1]
    if WIDTH > 16:
        left, right = halves(scores)
        store_pairs(left, first_col, least, limit, inside, BUFFERS)
        store_pairs(right, first_col + WIDTH // 2, least, limit, inside, BUFFERS + WIDTH // 2)
    else:
        places = tl.arange(0, WIDTH)[None, :]
        cols = first_col + places
        above = is_above(scores, cols, least[:, None], limit[:, None])
        pairs = tl.where(above, pack(scores, cols), EMPTY)
        tl.store(BUFFERS[:, None] + places, pairs, mask=inside[:, None])


@triton.jit
def append_survivors(scores, first_col, least, limit, BUFFERS, filled):
    """Appends a tile's pairs above the rows' bounds; how many each row's buffer then holds.

    Row by row the best first, all rows at once: survivors are few.
    """
    WIDTH: tl.constexpr = scores.shape[1]
    if WIDTH > PIECE:
        left, right = halves(scores)
        filled = append_survivors(left, first_col, least, limit, BUFFERS, filled)
        return append_survivors(right, first_col + WIDTH // 2, least, limit, BUFFERS, filled)
    else:
        cols = first_col + tl.arange(0, WIDTH)
        best = tl.max(scores, 1)
        more = is_above(best, first_col, least, limit)
        while any_of(more):
            col = tl.min(tl.where(scores == best[:, None], cols[None, :], LAST_INDEX), 1)
            more &= is_above(best, col, least, limit)
            tl.store(BUFFERS + filled, pack(best, col), mask=more)
            filled += more.to(tl.int32)
            scores = tl.where(cols[None, :] == col[:, None], float("-inf"), scores)
            best = tl.max(scores, 1)
            more &= is_above(best, first_col, least, limit)
        return filled


@triton.jit
def load_survivors(BUFFERS, start, filled):
    """Survivors ``start`` ... of each row, [rows, CHUNK]; LOWEST past the last."""
    places = start + tl.arange(0, CHUNK)
    inside = places[None, :] < filled[:, None]
    return tl.load(BUFFERS[:, None] + places[None, :], mask=inside, other=LOWEST)


@triton.jit
def is_listed(indices, first, last, KEYS, steps):
    """Which indices are among their row's sorted KEYS[first:last]; ``steps`` halvings suffice."""
    low = first[:, None] + tl.zeros_like(indices)
    high = last[:, None] + tl.zeros_like(indices)
    for _ in range(steps):
        middle = (low + high) >> 1
        searching = low < high
        below = searching & (tl.load(KEYS + middle, mask=searching, other=0) < indices)
        high = tl.where(searching & ~below, middle, high)
        low = tl.where(below, middle + 1, low)
    return tl.load(KEYS + low, mask=low < last[:, None], other=-1) == indices


@triton.jit
def compact(BUFFERS, filled, bound, first, last, KEYS, steps):
    """Keeps the survivors above ``bound`` that are not among the row's KEYS; how many are left."""
    left = tl.zeros_like(filled)
    for start in range(0, tl.max(filled, 0), CHUNK):
        survivors = load_survivors(BUFFERS, start, filled)
        keep = survivors > bound[:, None]
        if KEYS is not None:
            keep &= ~is_listed(0xFFFFFFFF - (survivors & 0xFFFFFFFF), first, last, KEYS, steps)
        tl.debug_barrier()  # all are read before one is overwritten
        places = left[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
        tl.store(BUFFERS[:, None] + places, survivors, mask=keep)
        left += tl.sum(keep.to(tl.int32), 1)
    return left


@triton.jit
def drop_listed(BUFFERS, filled, OFFSETS, KEYS, rows, M, steps, EVEN: tl.constexpr):
    """Drops the survivors that are among their row's KEYS; how many are left."""
    first = load_vector(OFFSETS, rows, M, EVEN)
    last = load_vector(OFFSETS + 1, rows, M, EVEN)
    tl.debug_barrier()  # what other threads appended is there
    return compact(BUFFERS, filled, tl.zeros_like(first) + LOWEST, first, last, KEYS, steps)


@triton.jit
def count_above(BUFFERS, filled, bound):
    count = tl.zeros_like(filled)
    for start in range(0, tl.max(filled, 0), CHUNK):
        survivors = load_survivors(BUFFERS, start, filled)
        count += tl.sum((survivors > bound[:, None]).to(tl.int32), 1)
    return count


@triton.jit
def tighten(BUFFERS, filled, k, most):
    """Bounds that leave at most ``most`` survivors, and at least ``k``; LOWEST where that holds.

    Halves the range of packed pairs, counting. ``most`` is at least ``k``.
    """
    tl.debug_barrier()  # what other threads appended is there
    bound = tl.zeros_like(filled).to(tl.int64) + LOWEST
    high = tl.zeros_like(bound) + HIGHEST
    left = filled
    while tl.max(left, 0) > most:
        middle = (bound >> 1) + (high >> 1) + (bound & high & 1)
        above = count_above(BUFFERS, filled, middle)
        enough = above >= k
        high = tl.where(enough, high, middle)
        enough &= left > most
        bound = tl.where(enough, middle, bound)
        left = tl.where(enough, above, left)
    return bound
