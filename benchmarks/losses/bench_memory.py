"""Peak memory of forward + backward beyond inputs and their gradients, in a fresh process."""

import pytest

from benchmarks.losses.bench_time import EAGER_MATRICES
from benchmarks.losses.memory import measure_fresh
from benchmarks.machine import available_bytes
from benchmarks.memory import can_measure


def test_memory(benchmark, weighed, threads):
    case, who = weighed
    if not can_measure():
        pytest.skip("this system does not report a process' peak memory")
    if who == "eager" and EAGER_MATRICES * case.matrix_bytes > available_bytes():
        pytest.skip("eager would not fit into memory")
    benchmark.group = case.name
    benchmark.extra_info.update(case=list(case), who=who)
    result = benchmark.pedantic(measure_fresh, args=(case, who, threads))
    benchmark.extra_info.update(result)
