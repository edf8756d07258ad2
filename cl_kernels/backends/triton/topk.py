"""The k best keys of each query: a scan that keeps what passes a bound, and its rounds.

A program owns BLOCK_M queries, visits some of the tiles of keys and appends the pairs above its
queries' bounds to buffers of its own. A bound is not above the k-th best of some kept pairs, so
what it drops is not among the k best, however old it is: it comes from the round before, and the
program tightens it once a buffer is nearly full. ``select_topk`` takes the best from the buffers.
No atomics, and packed pairs are all different: no order of anything changes the result.
"""

import sys

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import rounds
from .configs import Config
from .launch import launch, processors
from .problem import Problem
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
from .tiles import (
    drop_by_filter,
    kernel,
    load_ids,
    load_vector,
    resident_rows,
    tile_products,
)

BLOCK = 128


def stored_config(config: Config) -> Config:
    """Tiles where all pairs are stored, which takes more registers."""
    return config._replace(BLOCK_M=min(config.BLOCK_M, 64))


@triton.jit
def key_factors(KEY_FACTOR, cols, N, EVEN: tl.constexpr):
    """The keys' factors, 1 where there are none; NaN, which is above nothing, past the last."""
    factors = tl.full(cols.shape, 1.0, tl.float32)
    if KEY_FACTOR is not None:
        factors = load_vector(KEY_FACTOR, cols, N, EVEN)
    return factors if EVEN else tl.where(cols < N, factors, float("nan"))


@triton.jit
def row_bounds(BOUND, ABOVE, rows, M, EVEN: tl.constexpr):
    """What a pair must be above, as ``unpack_bound`` says it; NaN in rows past the last."""
    bound = tl.zeros(rows.shape, tl.int64) + LOWEST
    if BOUND is not None:
        bound = load_vector(BOUND, rows, M, EVEN)
    least, limit = unpack_bound(bound)
    if ABOVE is not None:
        above = load_vector(ABOVE, rows, M, EVEN)
        limit = tl.where(above < least, limit, 0)
        least = tl.where(above < least, least, above)
    return tl.where(rows < M, least, float("nan")), limit


@kernel
def topk_scan_kernel(
    Q, K, QUERY_FACTOR, KEY_FACTOR, BELOW, ABOVE, BOUND, SURVIVORS, COUNTS, OFFSETS, KEYS,
    QID0, KID0, QID1, KID1, M, N, k, first_visit, last_visit, span, stride, parts, capacity, steps,
    D: tl.constexpr, WIDTH: tl.constexpr, KEEP0: tl.constexpr, KEEP1: tl.constexpr,
    EVEN: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """SURVIVORS[i, part, :COUNTS[i, part]] = the pairs of a part that are above BOUND[i].

    Visit v is of tile ``v * stride`` modulo the number of tiles; a part makes ``span`` visits.
    Buffers that would overflow keep their k best at least. Without BOUND they hold every pair,
    EMPTY where it is dropped, and those that KEYS exclude.
    """
    blocks = tl.cdiv(M, BLOCK_M)
    part = tl.program_id(0) // blocks
    first_row = (tl.program_id(0) % blocks) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_id0 = load_ids(QID0, rows, M, KEEP0, EVEN)
    row_id1 = load_ids(QID1, rows, M, KEEP1, EVEN)
    q = resident_rows(Q, first_row, M, D, EVEN, UPCAST, BLOCK_M, BLOCK_D, WIDTH)
    least, limit = row_bounds(BOUND, ABOVE, rows, M, EVEN)
    places = rows.to(tl.int64) * parts + part
    BUFFERS = SURVIVORS + places * capacity
    filled = tl.zeros((BLOCK_M,), tl.int32)
    most = capacity - BLOCK_N
    tiles = tl.cdiv(N, BLOCK_N)
    visit = first_visit + part * span
    last_visit = tl.minimum(last_visit, visit + span)
    tile = (visit.to(tl.int64) * stride % tiles).to(tl.int32)
    for v in range(visit, last_visit):
        first_col = tile * BLOCK_N
        tile += stride
        tile = tl.where(tile >= tiles, tile - tiles, tile)
        cols = first_col + tl.arange(0, BLOCK_N)
        scores = tile_products(
            q, Q, K, first_row, first_col, M, N,
            D, EVEN, PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_D, WIDTH,
        )  # fmt: skip
        if KEY_FACTOR is not None or not EVEN:
            scores *= key_factors(KEY_FACTOR, cols, N, EVEN)[None, :]
        if QUERY_FACTOR is not None:
            scores *= load_vector(QUERY_FACTOR, rows, M, EVEN)[:, None]
        if BELOW is not None:
            below = load_vector(BELOW, rows, M, EVEN)
            scores = tl.where(scores < below[:, None], scores, float("-inf"))
        scores = drop_by_filter(scores, float("-inf"), row_id0, KID0, cols, N, KEEP0, EVEN)
        scores = drop_by_filter(scores, float("-inf"), row_id1, KID1, cols, N, KEEP1, EVEN)
        if BOUND is None:
            store_pairs(scores, first_col, least, limit, rows < M, BUFFERS + (v - visit) * BLOCK_N)
            filled += BLOCK_N
        elif any_of(is_above(tl.max(scores, 1), first_col, least, limit)):
            filled = append_survivors(scores, first_col, least, limit, BUFFERS, filled)
            if (tl.max(filled, 0) > most) & (v + 1 < last_visit):
                if KEYS is not None:
                    filled = drop_listed(BUFFERS, filled, OFFSETS, KEYS, rows, M, steps, EVEN)
                bound = tighten(BUFFERS, filled, k, most)
                filled = compact(BUFFERS, filled, bound, None, None, None, 0)
                new_least, new_limit = unpack_bound(bound)
                least = tl.where(bound > LOWEST, new_least, least)
                limit = tl.where(bound > LOWEST, new_limit, limit)
    if BOUND is not None and KEYS is not None:
        filled = drop_listed(BUFFERS, filled, OFFSETS, KEYS, rows, M, steps, EVEN)
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


class Search(Problem):
    """One call of ``topk``."""

    widest = sys.maxsize
    maxnreg = 255  # or the assembler spills to make room for more programs

    def __init__(
        self, query, key, k, query_factor, key_factor, query_ids, key_ids, keep_same,
        exclude_offsets, exclude_keys, below, above,
    ):  # fmt: skip
        filters = query_ids, key_ids, keep_same
        super().__init__(query, key, None, *filters, None, None, None, None, query.dtype, None)
        self.k = k
        self.query_factor, self.key_factor = query_factor, key_factor
        self.offsets, self.excluded = exclude_offsets, exclude_keys
        if exclude_keys is None or len(exclude_keys) == 0:
            self.offsets = self.excluded = None
        self.below, self.above = below, above

    def run(self, config: Config) -> tuple[Tensor, Tensor]:
        plan = rounds.plan(self.M, self.N, self.k, config, processors(self.device))
        plan.check(self.k, config)
        size = plan.rows, plan.buffers, plan.capacity
        buffers = torch.empty(size, dtype=torch.int64, device=self.device)
        values = torch.empty(self.M, self.k, dtype=torch.float32, device=self.device)
        indices = torch.empty(self.M, self.k, dtype=torch.int64, device=self.device)
        for first in range(0, self.M, plan.rows):
            rows = slice(first, min(first + plan.rows, self.M))
            values[rows], indices[rows] = Wave(self, plan, config, rows, buffers).run()
        return values, indices


class Wave:
    """The search of some queries."""

    def __init__(self, search: Search, plan: rounds.Plan, config: Config, rows: slice, buffers):
        self.search, self.plan, self.config, self.rows = search, plan, config, rows
        self.M = rows.stop - rows.start
        self.tiles = triton.cdiv(search.N, config.BLOCK_N)
        self.stride = rounds.stride(self.tiles)
        self.buffers = buffers[: self.M]  # [M, buffers, capacity]
        self.counts = buffers.new_zeros(self.M, plan.buffers, dtype=torch.int32)

    def run(self) -> tuple[Tensor, Tensor]:
        *earlier, last = zip((0, *self.plan.ends), self.plan.ends, strict=False)
        bound = None
        for begin, end in earlier:
            bound = self.carry(*self.visit(begin, end, bound))
        return self.visit(*last, bound)

    def visit(self, begin: int, end: int, bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """One round; the best pairs up to its end."""
        search, plan, rows, M = self.search, self.plan, self.rows, self.M
        stored = bound is None or not plan.bounded
        config = stored_config(self.config) if stored else self.config
        query_factor, below, above, ids0, ids1 = (
            None if x is None else x[rows]
            for x in (search.query_factor, search.below, search.above, *search.query_ids)
        )
        offsets = None if search.offsets is None else search.offsets[rows.start : rows.stop + 1]
        listed = (None, None) if stored else (offsets, search.excluded)
        steps = 0 if search.excluded is None else len(search.excluded).bit_length()
        span = triton.cdiv(end - begin, plan.parts)
        search.launch(
            topk_scan_kernel, plan.parts * triton.cdiv(M, config.BLOCK_M), config,
            search.query[rows], search.key, query_factor, search.key_factor, below, above,
            None if stored else bound, self.buffers, self.counts, *listed,
            ids0, search.key_ids[0], ids1, search.key_ids[1], M, search.N, search.k,
            begin, end, span, self.stride, plan.buffers, plan.capacity, steps,
            M=M, WIDTH=None if search.width == search.D else search.D,
        )  # fmt: skip
        if stored and offsets is not None:
            inverse = pow(self.stride, -1, self.tiles)
            launch(
                drop_listed_pairs_kernel, M,
                (self.buffers, offsets, search.excluded, self.tiles, begin, end, span, inverse,
                 plan.buffers, plan.capacity),
                {"BLOCK_N": config.BLOCK_N, "BLOCK": BLOCK},
            )  # fmt: skip
        return select(self.buffers, self.counts, search.k)

    def carry(self, values: Tensor, indices: Tensor) -> Tensor:
        """Keeps the best pairs for the next round; its bound."""
        plan = self.plan
        bound = self.buffers.new_empty(self.M)
        launch(
            carry_best_kernel, self.M,
            (values, indices, self.buffers, self.counts, bound, self.search.k,
             plan.parts, plan.buffers, plan.capacity),
            {"BLOCK": BLOCK},
        )  # fmt: skip
        return bound


def select(packed: Tensor, counts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``select_topk``: the compiled one where it serves the device, else plain torch."""
    name, device = "cl_kernels::select_topk.native", packed.device.type.upper()
    native = torch._C._dispatch_has_kernel_for_dispatch_key(name, device)
    operation = torch.ops.cl_kernels.select_topk
    return (operation.native if native else operation.chunked)(packed, counts, k)


def topk(query, key, k, *options) -> tuple[Tensor, Tensor]:
    """The k best keys of each query: scores [M, k] and indices [M, k]."""
    M, N = query.shape[0], key.shape[0]
    if M == 0 or N == 0:
        values = query.new_full((M, k), -torch.inf, dtype=torch.float32)
        return values, torch.full_like(values, -1, dtype=torch.int64)
    search = Search(query, key, k, *options)
    return search.with_config("topk", search.run)
