"""Times and weighs one case on a GPU.

Medians of samples between CUDA events, each of calls that last five milliseconds or of one call.
Memory is the allocator's peak beyond what was there before the call, inputs among it, and beyond
the gradients that come back. A case is named "<size> <who>"; ``CASES`` knows them all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.gpu import contestants
from benchmarks.gpu.cases import GOALS, HUGE, SEARCHES, SMALL, GpuCase
from benchmarks.gpu.device import device, rehearsed

SAMPLE_SECONDS = 5e-3
LEAST, MOST = 3, 30  # samples
MEASURE_SECONDS = 0.5
LONG_SECONDS = 2.0  # a call that takes longer is sampled once
PROFILED_SECONDS = 0.5  # a call that takes longer is not run again for its kernels' times

Make = Callable[[GpuCase, list[Tensor]], contestants.Step]
MAKERS: dict[str, Make] = {
    "ours": contestants.ours,
    "eager": contestants.eager_torch,
    "product": contestants.product,
    "compiled": contestants.compiled_torch,
}


def sample(step: contestants.Step, loops: int) -> float:
    """Seconds per call, on the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    timing.repeat(step, loops)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / loops


def plan(step: contestants.Step, budget: float = MEASURE_SECONDS) -> tuple[int, int]:
    """Loops a sample and number of samples; the function is warm already."""
    seconds = sample(step, 1)
    if not seconds < LONG_SECONDS:
        return 1, 1
    loops = max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9)))
    return loops, max(LEAST, min(MOST, int(budget / (loops * seconds))))


def median_seconds(step: contestants.Step, budget: float = MEASURE_SECONDS) -> dict[str, Any]:
    loops, count = plan(step, budget)
    times = [sample(step, loops) for _ in range(count)]
    return {"seconds": statistics.median(times), "samples": count, "least": min(times)}


def peak_bytes(step: contestants.Step) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = step()
    torch.cuda.synchronize()
    tensors = result if isinstance(result, tuple) else (result,)
    returned = sum(x.nbytes for x in tensors if isinstance(x, Tensor))
    return torch.cuda.max_memory_allocated() - before - returned


def kernel_seconds(step: contestants.Step, most: int = 8) -> dict[str, float]:
    """Where one call's time goes: the kernels that take most of it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    times = {event.key[:80]: event.device_time_total / 1e6 for event in profiler.key_averages()}
    return dict(sorted(times.items(), key=lambda item: -item[1])[:most])


def measure(case: GpuCase, who: str, make: Make) -> dict[str, Any]:
    """One contestant's times and memory, and where ours spends the time."""
    step = make(case, contestants.make_inputs(case, device(large=case.fits_meta)))
    start = perf_counter()
    step()
    if rehearsed():
        return {}
    torch.cuda.synchronize()
    result: dict[str, Any] = {"first_call_seconds": perf_counter() - start}
    result |= {"peak_extra_bytes": peak_bytes(step), **median_seconds(step)}
    if who == "ours" and result["seconds"] < PROFILED_SECONDS:
        try:
            result["kernels"] = kernel_seconds(step)
        except Exception as error:  # a profiler that is not to be had spoils no measurement
            result["kernels"] = {f"no profile: {type(error).__name__}": 0.0}
    return result


def measure_pair(case: GpuCase) -> dict[str, Any]:
    """Ours and eager PyTorch in turn, for times that vary with whatever else the machine does."""
    where = device(large=case.fits_meta)
    steps = [MAKERS[who](case, contestants.make_inputs(case, where)) for who in ("ours", "eager")]
    for step in steps * 2:
        step()
    if rehearsed():
        return {}
    plans = [plan(step) for step in steps]
    count = max(LEAST, min(count for _, count in plans))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for step, (loops, _), found in zip(steps, plans, times, strict=True):
            found.append(sample(step, loops))
    result = timing.compare(*times)
    return result | {"seconds": result["ours_seconds"]}


@contextmanager
def settings(deterministic: bool):
    filling: Any = torch.utils.deterministic
    torch.use_deterministic_algorithms(deterministic)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _rivals(case: GpuCase) -> dict[str, Make]:
    """Whoever computes the case beside us, in order of interest."""
    names = ["product", "eager"] + ["compiled"] * (not case.forward_only)
    return {name: MAKERS[name] for name in names} | contestants.others(case)


def _cases() -> dict[str, Callable[[], dict[str, Any]]]:
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for case in (*GOALS, *SEARCHES, HUGE):
        for who, make in {"ours": contestants.ours, **_rivals(case)}.items():
            found[f"{case} {who}"] = partial(measure, case, who, make)
    for case in SMALL:
        found[f"{case} pair"] = partial(measure_pair, case)
    return found


CASES = _cases()


def named(cases: tuple[GpuCase, ...], who: str) -> tuple[str, ...]:
    return tuple(f"{case} {who}" for case in cases)


def rivals(cases: tuple[GpuCase, ...]) -> tuple[str, ...]:
    """All rivals' cases, a kind of rival at a time."""
    by_case = {case: list(_rivals(case)) for case in cases}
    kinds = dict.fromkeys(who for rivals in by_case.values() for who in rivals)
    return tuple(f"{case} {who}" for who in kinds for case in cases if who in by_case[case])


def work(case: str) -> dict[str, Any]:
    work = CASES[case]
    deterministic = "-deterministic" in case and case.endswith(" ours")
    try:
        with settings(deterministic):
            return work()
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
