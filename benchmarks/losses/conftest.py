"""The cases that each suite goes through."""

from __future__ import annotations

from benchmarks.losses.cases import NAMES, memory_cases, time_cases
from benchmarks.losses.options import option_cases


def pytest_addoption(parser):
    group = parser.getgroup("cl_kernels")
    group.addoption("--case", action="append", choices=NAMES, help="only these; repeatable")


def pytest_generate_tests(metafunc):
    options = metafunc.config.option
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", time_cases(options.case or NAMES, options.quick), ids=str)
    if "option_case" in metafunc.fixturenames:
        cases = option_cases(options.case or NAMES, options.quick)
        metafunc.parametrize("option_case", cases, ids=str)
    if "weighed" in metafunc.fixturenames:
        weighed = memory_cases(options.case or NAMES, options.quick)
        metafunc.parametrize("weighed", weighed, ids=lambda pair: f"{pair[0]}-{pair[1]}")
