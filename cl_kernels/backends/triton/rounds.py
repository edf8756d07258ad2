"""How a top-K scan is cut: waves of queries, rounds of keys, and parts of a round.

The first round stores all its pairs. Each later one visits more keys than all before it together,
bounded by what they left, so that few pairs survive. The sizes below which every round stores all
its pairs, and all constants here, are estimates from counting instructions: not measured yet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton

from .configs import Config

WORKSPACE = 62 * 10**6  # bytes of a wave's survivors and results; small vectors make it 64 MB
FEW_KEYS = 1024  # so many are one round, all of whose pairs are stored
SCAN_K = 1024  # for more, buffers of at least k places are too few to fill a GPU
STORED_KEYS = 4096  # of a round that stores all its pairs, at least
LEAST_PARTS = 4
SPARE = 32  # places beyond k and a tile, so that buffers of few survivors rarely fill up
UNIT = 8  # what capacities are multiples of


class Plan(NamedTuple):
    rows: int  # queries of a wave
    parts: int  # of a round, each a program for every block of queries
    capacity: int  # places in a part's buffer
    carried: int  # more buffers, for the best pairs of the rounds before
    ends: tuple[int, ...]  # the visits before which the rounds end
    bounded: bool  # rounds after the first keep what passes their bounds; else all pairs

    @property
    def buffers(self) -> int:
        return self.parts + self.carried

    def check(self, k: int, config: Config) -> None:
        """Raises unless the buffers hold what the rounds put into them: kernels do not look.

        A round that stores all its pairs has a place for each; in the others a tile comes to at
        least k pairs, of which none may be dropped.
        """
        least = config.BLOCK_N + k if self.bounded else 0
        stored = self.ends[:1] if self.bounded else self.ends
        for begin, end in zip((0, *stored), stored, strict=False):
            least = max(least, triton.cdiv(end - begin, self.parts) * config.BLOCK_N)
        if self.capacity < least:
            raise ValueError(
                f"capacity: expected at least {least} places for tiles of {config.BLOCK_N} keys "
                f"and k = {k}, got {self.capacity}"
            )


def stride(tiles: int) -> int:
    """Steps by which every tile is visited once, and any few visits are spread over all tiles."""
    step = max(1, round(tiles * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, tiles) > 1:
        step += 1
    return step


def plan(M: int, N: int, k: int, config: Config, processors: int) -> Plan:
    bounded = k <= SCAN_K and N > FEW_KEYS
    return (_bounded if bounded else _stored)(M, N, k, config, processors)


def _wave(M: int, places: int, k: int, block: int) -> int:
    """Queries of a wave, of so many places each: even waves of whole blocks, if it holds one."""
    most = max(1, WORKSPACE // (8 * places + 12 * k))
    if most >= M:
        return M
    block = block if most >= block else 1
    waves = triton.cdiv(M, most // block * block)
    return triton.cdiv(triton.cdiv(M, waves), block) * block


def _bounded(M: int, N: int, k: int, config: Config, processors: int) -> Plan:
    tiles = triton.cdiv(N, config.BLOCK_N)
    capacity = triton.cdiv(config.BLOCK_N + k + SPARE, UNIT) * UNIT
    wanted = triton.cdiv(2 * processors, triton.cdiv(M, config.BLOCK_M))
    parts = max(LEAST_PARTS, min(wanted, tiles // 4))
    rows = _wave(M, (parts + 1) * capacity, k, config.BLOCK_M)
    first = min(tiles, parts * (capacity // config.BLOCK_N))
    # Where v visits follow u, about k * v / u pairs survive: half of what fits.
    growth = 1 + parts * (capacity - config.BLOCK_N) / (2 * k)
    rounds = math.ceil(math.log(tiles / first, growth))
    ends = (round(first * (tiles / first) ** (i / rounds)) for i in range(1, rounds + 1))
    return Plan(rows, parts, capacity, 1, (first, *ends), True)


def _stored(M: int, N: int, k: int, config: Config, processors: int) -> Plan:
    tiles = triton.cdiv(N, config.BLOCK_N)
    programs = triton.cdiv(M, config.BLOCK_M) * tiles
    visits = max(1, min(4, programs // (2 * processors)))  # of a part
    capacity = visits * config.BLOCK_N
    parts = triton.cdiv(tiles, visits)
    rows = _wave(M, min(parts * capacity, STORED_KEYS + 3 * k), k, config.BLOCK_M)
    places = (WORKSPACE // rows - 12 * k) // 8
    if parts * capacity <= places:
        return Plan(rows, parts, capacity, 0, (tiles,), False)
    carried = triton.cdiv(k, capacity)
    parts = max(1, places // capacity - carried)
    ends = (*range(parts * visits, tiles, parts * visits), tiles)
    return Plan(rows, parts, capacity, carried, ends, False)
