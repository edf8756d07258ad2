"""Options that all suites have, and the machine in pytest-benchmark's JSON."""

from __future__ import annotations

import pytest
import torch

from benchmarks import machine


def pytest_addoption(parser):
    group = parser.getgroup("cl_kernels")
    group.addoption("--quick", action="store_true", help="a subset of a few minutes")
    group.addoption("--threads", type=int, default=machine.cores(), help="threads of every side")


def pytest_configure(config):
    torch.set_num_threads(config.getoption("threads"))


@pytest.fixture
def threads(request) -> int:
    return request.config.getoption("threads")


def pytest_benchmark_generate_machine_info():
    return machine.describe()


def pytest_benchmark_generate_commit_info():
    return {"id": machine.commit()}
