"""How a top-K scan is cut: waves of queries, rounds of keys, and parts of a round.

The first round stores all its pairs. Each later one visits more keys than all before it together,
bounded by what they left, so that few pairs survive. The sizes below which every round stores all
its pairs, and all constants here, are estimates from counting instructions: not measured yet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from .cuts import ceil_div

WORKSPACE = 62 * 10**6  # bytes of a wave's survivors and results; small vectors make it 64 MB
FEW_KEYS = 1024  # so many are one round, all of whose pairs are stored
SCAN_K = 1024  # for more, buffers of at least k places are too few to fill a GPU
STORED_KEYS = 4096  # of a round that stores all its pairs, at least
LEAST_PARTS = 4
SPARE = 32  # places beyond k and a tile, so that buffers of few survivors rarely fill up
UNIT = 8  # what capacities are multiples of


class ScanPlan(NamedTuple):
    rows: int  # queries of a wave
    parts: int  # of a round, each a program for every block of queries
    capacity: int  # places in a part's buffer
    carried: int  # more buffers, for the best pairs of the rounds before
    ends: tuple[int, ...]  # the visits before which the rounds end
    bounded: bool  # rounds after the first keep what passes their bounds; else all pairs

    @property
    def buffers(self) -> int:
        return self.parts + self.carried

    def check(self, k: int, block_n: int) -> None:
        """Raises unless the buffers hold what the rounds put into them: kernels do not look.

        A round that stores all its pairs has a place for each; in the others a tile comes to at
        least k pairs, of which none may be dropped.
        """
        least = block_n + k if self.bounded else 0
        stored = self.ends[:1] if self.bounded else self.ends
        for begin, end in zip((0, *stored), stored, strict=False):
            least = max(least, ceil_div(end - begin, self.parts) * block_n)
        if self.capacity < least:
            raise ValueError(
                f"capacity: expected at least {least} places for tiles of {block_n} keys "
                f"and k = {k}, got {self.capacity}"
            )


def stride(tiles: int) -> int:
    """Steps by which every tile is visited once, and any few visits are spread over all tiles."""
    step = max(1, round(tiles * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, tiles) > 1:
        step += 1
    return step


def plan(M: int, N: int, k: int, tile: tuple[int, int], processors: int) -> ScanPlan:
    """For tiles of so many queries and keys."""
    bounded = k <= SCAN_K and N > FEW_KEYS
    return (_bounded if bounded else _stored)(M, N, k, tile, processors)


def _wave(M: int, places: int, k: int, block: int) -> int:
    """Queries of a wave, of so many places each: even waves of whole blocks, if it holds one."""
    most = max(1, WORKSPACE // (8 * places + 12 * k))
    if most >= M:
        return M
    block = block if most >= block else 1
    waves = ceil_div(M, most // block * block)
    return ceil_div(ceil_div(M, waves), block) * block


def _bounded(M: int, N: int, k: int, tile: tuple[int, int], processors: int) -> ScanPlan:
    block_m, block_n = tile
    tiles = ceil_div(N, block_n)
    capacity = ceil_div(block_n + k + SPARE, UNIT) * UNIT
    wanted = ceil_div(2 * processors, ceil_div(M, block_m))
    parts = max(LEAST_PARTS, min(wanted, tiles // 4))
    rows = _wave(M, (parts + 1) * capacity, k, block_m)
    first = min(tiles, parts * (capacity // block_n))
    # Where v visits follow u, about k * v / u pairs survive: half of what fits.
    growth = 1 + parts * (capacity - block_n) / (2 * k)
    rounds = math.ceil(math.log(tiles / first, growth))
    ends = (round(first * (tiles / first) ** (i / rounds)) for i in range(1, rounds + 1))
    return ScanPlan(rows, parts, capacity, 1, (first, *ends), True)


def _stored(M: int, N: int, k: int, tile: tuple[int, int], processors: int) -> ScanPlan:
    block_m, block_n = tile
    tiles = ceil_div(N, block_n)
    programs = ceil_div(M, block_m) * tiles
    visits = max(1, min(4, programs // (2 * processors)))  # of a part
    capacity = visits * block_n
    parts = ceil_div(tiles, visits)
    rows = _wave(M, min(parts * capacity, STORED_KEYS + 3 * k), k, block_m)
    places = (WORKSPACE // rows - 12 * k) // 8
    if parts * capacity <= places:
        return ScanPlan(rows, parts, capacity, 0, (tiles,), False)
    carried = ceil_div(k, capacity)
    parts = max(1, places // capacity - carried)
    ends = (*range(parts * visits, tiles, parts * visits), tiles)
    return ScanPlan(rows, parts, capacity, carried, ends, False)
