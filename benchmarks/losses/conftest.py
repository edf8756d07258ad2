"""The cases that each suite goes through."""

from __future__ import annotations

from benchmarks.losses.cases import NAMES, memory_cases, time_cases
from benchmarks.losses.family import family_sizes
from benchmarks.losses.options import option_cases
from catalogue.family import FAMILY


def pytest_addoption(parser):
    group = parser.getgroup("cl_kernels")
    group.addoption(
        "--case", action="append", choices=(*NAMES, *FAMILY), help="only these; repeatable"
    )


def pytest_generate_tests(metafunc):
    options = metafunc.config.option
    names = [name for name in options.case or NAMES if name in NAMES]
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", time_cases(names, options.quick), ids=str)
    if "option_case" in metafunc.fixturenames:
        cases = option_cases(names, options.quick)
        metafunc.parametrize("option_case", cases, ids=str)
    if "family_size" in metafunc.fixturenames:
        sizes = family_sizes([n for n in options.case or FAMILY if n in FAMILY], options.quick)
        metafunc.parametrize("family_size", sizes, ids=str)
    if "weighed" in metafunc.fixturenames:
        weighed = memory_cases(names, options.quick)
        metafunc.parametrize("weighed", weighed, ids=lambda pair: f"{pair[0]}-{pair[1]}")
