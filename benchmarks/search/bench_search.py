"""Each search against the bare product, paired; ours filtered against ours unfiltered; memory."""

import pytest

from benchmarks.memory import can_measure
from benchmarks.search.cases import GOALS, OVER_PLAIN, cases, of_size
from benchmarks.search.contestants import RIVALS, contestant, missing
from benchmarks.search.memory import measure_fresh
from benchmarks.timing import measure_pairs

LEAST_RIVAL_PAIRS = 5


def pytest_generate_tests(metafunc):
    every = cases(metafunc.config.getoption("quick"))
    if "who" in metafunc.fixturenames:
        ours = [(case, "ours") for case in every]
        plain = [case for case in every if case.kind == "random"]
        rivals = [(case, who) for case in plain for who in RIVALS]
        metafunc.parametrize(("search_case", "who"), ours + rivals, ids=str)
    elif "search_case" in metafunc.fixturenames:
        metafunc.parametrize("search_case", every, ids=str)


def test_search(benchmark, search_case, who):
    case = search_case
    if reason := missing(who, case) or missing("product", case):
        pytest.skip(reason)
    benchmark.extra_info.update(search=list(case), who=who, rival="product")
    least = LEAST_RIVAL_PAIRS if who != "ours" or case not in GOALS else 15
    measure_pairs(benchmark, contestant(case, who), contestant(case, "product"), least)


@pytest.mark.parametrize("plain", OVER_PLAIN, ids=str)
def test_over_a_plain_search(benchmark, request, plain):
    case = of_size(plain, request.config.getoption("quick"))
    benchmark.extra_info.update(search=list(case), who="ours", rival="unfiltered")
    measure_pairs(benchmark, contestant(case, "ours"), contestant(case, "ours, unfiltered"))


def test_memory(benchmark, search_case, threads):
    if not can_measure():
        pytest.skip("this system does not report a process' peak memory")
    benchmark.extra_info.update(search=list(search_case))
    peak = benchmark.pedantic(measure_fresh, args=(search_case, threads))
    benchmark.extra_info.update(peak_extra_bytes=peak)
