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

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.cases import Case

WARM_UP_ROWS = 32
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


def measure(case: Case, who: str) -> dict[str, float]:
    """Steps 1 to 4 in this process, which should be a fresh one."""
    from benchmarks.contestants import backward, contestant, forward, make_inputs

    contestant(case._replace(rows=WARM_UP_ROWS), who)()
    inputs = make_inputs(case)
    start = perf_counter()
    meter = PeakMeter()
    outputs = forward(case, who, inputs)
    in_forward = meter.extra_bytes()
    gradients = sum(x.nbytes for x in backward(outputs, inputs))
    in_both = meter.extra_bytes()
    peak = max(in_forward, in_both - gradients)
    return {"peak_extra_bytes": peak, "seconds": perf_counter() - start}


def measure_fresh(case: Case, who: str, threads: int) -> dict[str, float]:
    """``measure`` in a process of its own."""
    request = json.dumps({"case": list(case), "who": who, "threads": threads})
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", request],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if child.returncode:
        raise RuntimeError(f"{case} ({who}) in a fresh process failed:\n{child.stderr}")
    return json.loads(child.stdout)


if __name__ == "__main__":
    import torch

    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    print(json.dumps(measure(Case(*request["case"]), request["who"])))
