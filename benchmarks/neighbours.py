"""How much of the machine other processes took while we measured.

One busy neighbour on one core is enough to spoil the timings of small parallel calls: every
parallel region then waits for the thread that shares its core. So each result says how quiet
the machine was.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

DISTURBED = 0.1  # cores; results made beside more than this are pointed out

_STAT = Path("/proc/stat")


def _busy_seconds() -> float:
    """Seconds all cores together have worked since boot, or were stolen by a hypervisor."""
    ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._start = self._sample()

    @staticmethod
    def _sample() -> tuple[float, float]:
        if not _STAT.exists():
            return 0.0, time.perf_counter()
        own = os.times()
        others = _busy_seconds() - own.user - own.system - own.children_user - own.children_system
        return others, time.perf_counter()

    def cores(self) -> float:
        """Cores that others kept busy, on average; 0 where the system does not tell."""
        others, now = self._sample()
        seconds = max(now - self._start[1], 1e-9)
        return round(max(others - self._start[0], 0.0) / seconds, 2)


def warn_if_busy() -> None:
    neighbours = Neighbours()
    time.sleep(0.5)
    if (cores := neighbours.cores()) > DISTURBED:
        print(f"Other processes keep {cores:g} cores busy: expect poor timings.")
