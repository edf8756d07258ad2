"""Peak memory of one call, beyond its inputs and their gradients, in a fresh process.

Linux keeps the high-water mark of a process' resident memory (VmHWM) and resets it to the
present size on request (``/proc/self/clear_refs``). So the child process

1. runs the same function once on a tiny batch: libraries are loaded, threads started;
2. makes the inputs and writes to their pages;
3. resets the mark and reads the resident size;
4. runs the forward pass and reads the mark, then the backward pass and reads it again.

Mark minus size is the peak, whoever allocated it: torch, a BLAS library's packing buffers, a
kernel's tiles, thread stacks. The inputs were there before step 3. The bytes of their gradients
are subtracted from the peak of both passes, not from that of the forward pass, which has none
yet; the larger of the two counts. No sampling, so nothing is missed between samples; pages that
were reserved but never written do not count. The kernel counts in batches of pages: errors stay
under 1 MB or so.
"""

from __future__ import annotations

from pathlib import Path

MEGABYTE = 10**6
PROCESS = Path("/proc/self")


def can_measure() -> bool:
    return (PROCESS / "clear_refs").exists()


def _status_bytes(field: str) -> int:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROCESS}/status has no {field}")


class PeakMeter:
    """How far resident memory has risen above the size it had when the meter was made."""

    def __init__(self) -> None:
        (PROCESS / "clear_refs").write_text("5")
        self._before = _status_bytes("VmRSS")

    def extra_bytes(self) -> int:
        return _status_bytes("VmHWM") - self._before
