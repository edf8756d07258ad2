"""The kernels of a search: a scan that keeps what passes a bound, and what stands around it.

A program owns BLOCK_M queries, visits some of the tiles of keys and appends the pairs above its
queries' bounds to buffers of its own. A bound is not above the k-th best of some kept pairs, so
what it drops is not among the k best, however old it is: it comes from the round before, and the
program tightens it once a buffer is nearly full. ``select_topk`` takes the best from the buffers.
No atomics, and packed pairs are all different: no order of anything changes the result.
"""

import triton
import triton.language as tl

from .pairs import drop_by_sides, load_side
from .survivors import (
    EMPTY,
    LOWEST,
    any_of,
    append_survivors,
    compact,
    drop_listed,
    is_above,
    pack,
    store_pairs,
    tighten,
    unpack_bound,
)
from .tiles import kernel, load_vector, resident_rows, tile_products


@triton.jit
def key_factors(KEY_FACTOR, cols, N, EVEN: tl.constexpr):
    """The keys' factors, 1 where there are none; NaN, which is above nothing, past the last."""
    factors = tl.full(cols.shape, 1.0, tl.float32)
    if KEY_FACTOR is not None:
        factors = load_vector(KEY_FACTOR, cols, N, EVEN)
    return factors if EVEN else tl.where(cols < N, factors, float("nan"))


@triton.jit
def row_bounds(BOUND, rows, M, EVEN: tl.constexpr):
    """What a pair must be above, as ``unpack_bound`` says it; NaN in rows past the last."""
    bound = tl.zeros(rows.shape, tl.int64) + LOWEST
    if BOUND is not None:
        bound = load_vector(BOUND, rows, M, EVEN)
    least, limit = unpack_bound(bound)
    return tl.where(rows < M, least, float("nan")), limit


@kernel
def topk_scan_kernel(
    X, Y, QUERY_FACTOR, KEY_FACTOR, queries, keys, BOUND, SURVIVORS, COUNTS, OFFSETS, KEYS,
    M, N, k, first_visit, last_visit, span, stride, parts, capacity, steps, TILE: tl.constexpr,
):  # fmt: skip
    """SURVIVORS[i, part, :COUNTS[i, part]] = the pairs of a part that are above BOUND[i].

    Visit v is of tile ``v * stride`` modulo the number of tiles; a part makes ``span`` visits.
    Buffers that would overflow keep their k best at least. Without BOUND they hold every pair,
    EMPTY where it is dropped, and those that KEYS exclude.
    """
    blocks = tl.cdiv(M, TILE.BLOCK_M)
    part = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * TILE.BLOCK_M
    rows = first_row + tl.arange(0, TILE.BLOCK_M)
    held = load_side(queries, rows, M, TILE.EVEN)
    x = resident_rows(X, first_row, M, TILE)
    least, limit = row_bounds(BOUND, rows, M, TILE.EVEN)
    places = rows.to(tl.int64) * parts + part
    BUFFERS = SURVIVORS + places * capacity
    filled = tl.full((TILE.BLOCK_M,), 0, tl.int32)
    most = capacity - TILE.BLOCK_N
    tiles = tl.cdiv(N, TILE.BLOCK_N)
    visit = first_visit + part * span
    last_visit = tl.minimum(last_visit, visit + span)
    tile = (visit.to(tl.int64) * stride % tiles).to(tl.int32)
    for v in range(visit, last_visit):
        first_col = tile * TILE.BLOCK_N
        tile += stride
        tile = tl.where(tile >= tiles, tile - tiles, tile)
        cols = first_col + tl.arange(0, TILE.BLOCK_N)
        scores = tile_products(x, X, Y, first_row, first_col, M, N, TILE)
        if KEY_FACTOR is not None or not TILE.EVEN:
            scores *= key_factors(KEY_FACTOR, cols, N, TILE.EVEN)[None, :]
        if QUERY_FACTOR is not None:
            scores *= load_vector(QUERY_FACTOR, rows, M, TILE.EVEN)[:, None]
        scores = drop_by_sides(
            scores, float("-inf"), scores, queries, held, keys, cols, N, TILE.EVEN
        )
        if BOUND is None:
            stored = BUFFERS + (v - visit) * TILE.BLOCK_N
            store_pairs(scores, first_col, least, limit, rows < M, stored)
            filled += TILE.BLOCK_N
        elif any_of(is_above(tl.max(scores, 1), first_col, least, limit)):
            filled = append_survivors(scores, first_col, least, limit, BUFFERS, filled)
            if (tl.max(filled, 0) > most) & (v + 1 < last_visit):
                if KEYS is not None:
                    filled = drop_listed(BUFFERS, filled, OFFSETS, KEYS, rows, M, steps, TILE.EVEN)
                bound = tighten(BUFFERS, filled, k, most)
                filled = compact(BUFFERS, filled, bound, None, None, None, 0)
                new_least, new_limit = unpack_bound(bound)
                least = tl.where(bound > LOWEST, new_least, least)
                limit = tl.where(bound > LOWEST, new_limit, limit)
    if BOUND is not None and KEYS is not None:
        filled = drop_listed(BUFFERS, filled, OFFSETS, KEYS, rows, M, steps, TILE.EVEN)
    tl.store(COUNTS + places, filled, mask=rows < M)


@kernel
def drop_listed_pairs_kernel(
    SURVIVORS, OFFSETS, KEYS, tiles, first_visit, last_visit, span, inverse, parts, capacity,
    BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Empties the places of a row's KEYS where a scan without bounds stored all its pairs."""
    row = tl.program_id(0).to(tl.int64)
    last = tl.load(OFFSETS + row + 1)
    for start in range(tl.load(OFFSETS + row), last, BLOCK):
        listed = start + tl.arange(0, BLOCK)
        key = tl.load(KEYS + listed, mask=listed < last, other=0)
        visit = (key // BLOCK_N) * inverse % tiles - first_visit
        inside = (listed < last) & (visit >= 0) & (visit < last_visit - first_visit)
        place = (visit % span) * BLOCK_N + key % BLOCK_N
        tl.store(SURVIVORS + (row * parts + visit // span) * capacity + place, EMPTY, mask=inside)


@kernel
def carry_best_kernel(
    VALUES, INDICES, SURVIVORS, COUNTS, BOUND, k, first_part, parts, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Puts a row's best pairs into its buffers from ``first_part`` on; BOUND = the k-th best."""
    row = tl.program_id(0).to(tl.int64)
    filled = tl.zeros((BLOCK,), tl.int32)
    buffer = SURVIVORS + (row * parts + first_part) * capacity
    for start in range(0, k, BLOCK):
        places = start + tl.arange(0, BLOCK)
        index = tl.load(INDICES + row * k + places, mask=places < k, other=-1)
        value = tl.load(VALUES + row * k + places, mask=places < k, other=0.0)
        tl.store(buffer + places, pack(value, index), mask=index >= 0)
        filled += (index >= 0).to(tl.int32)
    found = tl.sum(filled, 0)
    for part in range(first_part, parts):
        count = tl.minimum(tl.maximum(found - (part - first_part) * capacity, 0), capacity)
        tl.store(COUNTS + row * parts + part, count)
    last = row * k + k - 1
    kth = pack(tl.load(VALUES + last), tl.load(INDICES + last))
    tl.store(BOUND + row, tl.where(found == k, kth, LOWEST))
