"""Times and weighs one suite on a GPU and writes JSON after every measurement.

Medians of samples between CUDA events, each of calls that last five milliseconds or of one call.
Memory is the allocator's peak beyond what was there before the call, inputs among it, and beyond
the gradients that come back. What there is no time left for is left out and named.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.gpu import contestants
from benchmarks.gpu.cases import SUITES, TINY, GpuCase
from benchmarks.gpu.machine import describe

SAMPLE_SECONDS = 5e-3
LEAST, MOST = 3, 30  # samples
MEASURE_SECONDS = 0.7
LONG_SECONDS = 2.0  # a call that takes longer is sampled once
NO_TIME = "no time left"

Make = Callable[[GpuCase, list[Tensor]], contestants.Step]
BASICS: dict[str, Make] = {
    "ours": contestants.ours,
    "eager": contestants.eager_torch,
    "product": contestants.product,
}


def sample(step: contestants.Step, loops: int, device: str) -> float:
    """Seconds per call, on the device's clock."""
    if device == "cpu":
        return timing.seconds_per_call(step, loops)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    timing.repeat(step, loops)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / loops


def plan(step: contestants.Step, device: str) -> tuple[int, int]:
    """Loops a sample and number of samples; the function is warm already."""
    seconds = max(sample(step, 1, device), 1e-9)
    if seconds > LONG_SECONDS:
        return 1, 1
    loops = max(1, math.ceil(SAMPLE_SECONDS / seconds)) if device != "cpu" else 1
    return loops, max(LEAST, min(MOST, int(MEASURE_SECONDS / (loops * seconds))))


def peak_bytes(step: contestants.Step, device: str) -> int | None:
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = step()
    torch.cuda.synchronize()
    tensors = result if isinstance(result, tuple) else (result,)
    returned = sum(x.nbytes for x in tensors if isinstance(x, Tensor))
    return torch.cuda.max_memory_allocated() - before - returned


def measure(case: GpuCase, make: Make, device: str) -> dict[str, Any]:
    """One contestant's times and memory."""
    step = make(case, contestants.make_inputs(case, device))
    start = perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    result: dict[str, Any] = {"first_call_seconds": perf_counter() - start}
    result["peak_extra_bytes"] = peak_bytes(step, device)
    loops, count = plan(step, device)
    times = [sample(step, loops, device) for _ in range(count)]
    return result | {"seconds": statistics.median(times), "samples": count, "least": min(times)}


def measure_pair(case: GpuCase, device: str) -> dict[str, Any]:
    """Ours and eager PyTorch in turn, for times that vary with whatever else the machine does."""
    steps = [BASICS[who](case, contestants.make_inputs(case, device)) for who in ("ours", "eager")]
    for step in steps * 2:
        step()
    plans = [plan(step, device) for step in steps]
    count = max(LEAST, min(count for _, count in plans))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for step, (loops, _), found in zip(steps, plans, times, strict=True):
            found.append(sample(step, loops, device))
    result = timing.compare(*times)
    return result | {"seconds": result["ours_seconds"]}


def safely(work: Callable[[], dict[str, Any]], deterministic: bool) -> dict[str, Any]:
    """What was measured, or the error in one line."""
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(deterministic)
    settings.fill_uninitialized_memory = False
    try:
        return work()
    except Exception as error:  # a rival's failure must not end the run
        if isinstance(error, torch.OutOfMemoryError):
            return {"error": "out of memory"}
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:200]}"}
    finally:
        torch.use_deterministic_algorithms(False)
        settings.fill_uninitialized_memory = fills
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def seconds_needed(case: GpuCase, who: str) -> float:
    """A generous guess: compiling, the first call and the samples."""
    call = 5 * case.product_flop / 300e12
    return (40 if who == "compiled" else 8) + 4 * call


def schedule(suite: str, cases: tuple[GpuCase, ...]) -> Iterator[tuple[GpuCase, str, Make | None]]:
    """What to measure, in order of interest; None: ours and eager in turn."""
    if suite == "small":
        yield from ((case, "pair", None) for case in cases)
        return
    if suite == "huge":
        yield from ((case, "ours", contestants.ours) for case in cases)
        return
    for who, make in BASICS.items():
        yield from ((case, who, make) for case in cases)
    for case in cases:
        yield from ((case, who, make) for who, make in contestants.others(case).items())
    for case in cases:
        if not case.forward_only:
            yield case, "compiled", contestants.compiled_torch


def run(
    suite: str, cases: tuple[GpuCase, ...], device: str, until: float
) -> Iterator[tuple[GpuCase, str, dict[str, Any]]]:
    """Measurements as they are made; ``until`` as ``perf_counter`` counts."""
    for case, who, make in schedule(suite, cases):
        if perf_counter() + seconds_needed(case, who) > until:
            yield case, who, {"error": NO_TIME}
            continue
        work = partial(measure_pair, case) if make is None else partial(measure, case, make)
        yield case, who, safely(partial(work, device), case.deterministic and who == "ours")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.measure", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0, help="start nothing after this")
    parser.add_argument("--commit", default="")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    cases = (TINY if options.dry_run else SUITES)[options.suite]
    if options.dry_run:
        options.seconds = math.inf
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / f"{options.suite}.json"
    document: dict[str, Any] = {"machine": describe(device, options.commit), "measured": []}
    document["not installed"] = contestants.left_out()
    broken = 0
    for case, who, result in run(options.suite, cases, device, perf_counter() + options.seconds):
        document["measured"].append({**case._asdict(), "who": who, **result})
        path.write_text(json.dumps(document, indent=1) + "\n")
        outcome = result.get("error") or f"{result['seconds'] * 1e3:.4g} ms"
        print(f"{case} {who}: {outcome}", flush=True)
        broken += who in ("ours", "pair") and result.get("error", NO_TIME) != NO_TIME
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
