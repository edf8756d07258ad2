"""Peak memory of one loss or primitive in a fresh process; ``benchmarks.memory`` says how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.losses.cases import Case
from benchmarks.memory import PeakMeter

WARM_UP_ROWS = 32


def measure(case: Case, who: str) -> dict[str, float]:
    """The steps that ``benchmarks.memory`` lists, in this process, which should be a fresh one."""
    from benchmarks.losses.contestants import backward, contestant, forward, make_inputs

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
        [sys.executable, "-m", "benchmarks.losses.memory", request],
        cwd=Path(__file__).parents[2],
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
