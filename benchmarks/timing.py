"""Paired timing: ours and a rival in turn, so that whatever slows the machine slows both.

A ratio is taken within each pair, and the median over pairs is reported: a neighbour that
wakes up for a second spoils a few pairs and not the result.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from benchmarks.neighbours import Neighbours

SAMPLE_SECONDS = 5e-3  # shorter calls are repeated until one sample takes this long
LEAST_PAIRS, MOST_PAIRS = 15, 45
SHORT_SECONDS = 1.0  # more than the least pairs only as long as they fit in this
LONG_SECONDS = 15.0  # a rival that may have fewer pairs gets as many as fit in this


def repeat(function: Callable[[], Any], loops: int) -> None:
    for _ in range(loops):
        function()


def seconds_per_call(function: Callable[[], Any], loops: int) -> float:
    start = perf_counter()
    repeat(function, loops)
    return (perf_counter() - start) / loops


def calibrate(function: Callable[[], Any], sample: float = SAMPLE_SECONDS) -> tuple[int, float]:
    """Loops that make one sample last, and seconds per call; warms the function up."""
    seconds = seconds_per_call(function, 1)
    loops = 1
    while seconds < 1 and (seconds := seconds_per_call(function, loops)) * loops < sample:
        loops = max(2 * loops, min(100 * loops, math.ceil(1.1 * sample / max(seconds, 1e-9))))
    return loops, seconds


def count_pairs(pair_seconds: float, least_when_long: int) -> int:
    """15 to 45 pairs; fewer, down to ``least_when_long``, where 15 would take too long."""
    if LEAST_PAIRS * pair_seconds > LONG_SECONDS:
        return max(least_when_long, min(LEAST_PAIRS, int(LONG_SECONDS / pair_seconds)))
    return max(LEAST_PAIRS, min(MOST_PAIRS, int(SHORT_SECONDS / pair_seconds)))


def measure_pairs(benchmark, ours, rival, least_when_long: int = LEAST_PAIRS) -> None:
    """Times ours through pytest-benchmark and, in the set-up of each round, the rival.

    The fixture's own samples are ours; those of the rival go beside them into ``extra_info``.
    """
    rival_loops, rival_seconds = calibrate(rival)
    loops, seconds = calibrate(ours)
    pairs = count_pairs(loops * seconds + rival_loops * rival_seconds, least_when_long)
    rival_samples: list[float] = []
    neighbours = Neighbours()
    benchmark.pedantic(
        repeat,
        args=(ours, loops),
        setup=lambda: rival_samples.append(seconds_per_call(rival, rival_loops)),
        rounds=pairs,
    )
    benchmark.extra_info.update(
        loops=loops,
        rival_loops=rival_loops,
        rival_seconds=rival_samples,
        neighbours=neighbours.cores(),
    )


def compare(ours: Sequence[float], rival: Sequence[float]) -> dict[str, float]:
    """Medians of both sides, and median and quartiles of the ratios ours / rival, pair by pair."""
    if len(ours) != len(rival) or not ours:
        raise ValueError(f"expected pairs, got {len(ours)} and {len(rival)} samples")
    ratios = [a / b for a, b in zip(ours, rival, strict=True)]
    low, _, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    return {
        "ours_seconds": statistics.median(ours),
        "rival_seconds": statistics.median(rival),
        "ratio": statistics.median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "pairs": len(ratios),
    }
