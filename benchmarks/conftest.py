"""Options of the suites, the cases they select, and the machine in pytest-benchmark's JSON."""

from __future__ import annotations

import pytest
import torch

from benchmarks import machine
from benchmarks.cases import NAMES, memory_cases, time_cases


def pytest_addoption(parser):
    group = parser.getgroup("cl_kernels")
    group.addoption("--quick", action="store_true", help="a subset of about two minutes")
    group.addoption("--case", action="append", choices=NAMES, help="only these; repeatable")
    group.addoption("--threads", type=int, default=machine.cores(), help="threads of every side")


def pytest_configure(config):
    torch.set_num_threads(config.getoption("threads"))


def pytest_generate_tests(metafunc):
    options = metafunc.config.option
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", time_cases(options.case or NAMES, options.quick), ids=str)
    if "weighed" in metafunc.fixturenames:
        weighed = memory_cases(options.case or NAMES, options.quick)
        metafunc.parametrize("weighed", weighed, ids=lambda pair: f"{pair[0]}-{pair[1]}")


@pytest.fixture
def threads(request) -> int:
    return request.config.getoption("threads")


def pytest_benchmark_generate_machine_info():
    return machine.describe()


def pytest_benchmark_generate_commit_info():
    return {"id": machine.commit()}
