"""The benchmarks' machinery. Speed itself is never asserted."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import memory, readme, timing
from benchmarks.losses import contestants, family, options, plots, report
from benchmarks.losses.cases import GOALS, NAMES, Case, memory_cases, time_cases
from benchmarks.losses.family import EAGER, FamilySize
from benchmarks.losses.libraries import LIBRARIES, installed
from benchmarks.losses.memory import measure_fresh
from benchmarks.losses.options import option_cases
from benchmarks.neighbours import Neighbours
from catalogue.family import FAMILY
from catalogue.losses import LOSSES

needs_peak = pytest.mark.skipif(not memory.can_measure(), reason="no /proc/self/clear_refs")
MEGABYTES = 10**6


def test_grid_spans_sizes_widths_and_goals():
    cases = time_cases()
    assert len(cases) == len(set(cases))
    for name in NAMES:
        mine = [case for case in cases if case.name == name]
        assert (min(c.rows for c in mine), max(c.rows for c in mine)) == (16, 16384)
        assert {c.width for c in mine} == {64, 128, 256, 768, 1024}
    assert set(GOALS) <= set(cases)
    assert set(time_cases(quick=True)) <= set(cases)
    assert {case.name for case in time_cases(["clip"])} == {"clip"}
    assert set(memory_cases(["clip"], quick=True)) <= set(memory_cases(["clip"]))


@pytest.mark.parametrize("name", NAMES)
def test_eager_computes_the_same_gradients(name):
    case = Case(name, 32, 8)
    ours, eager = (contestants.contestant(case, who)() for who in ("ours", "eager"))
    assert ours is not None and eager is not None
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-6)


def test_ratio_is_the_median_of_pairs_not_the_ratio_of_medians():
    # The machine halves its speed in the third pair and stays slow.
    ours, rival = [1.0, 1.0, 2.0, 2.0, 2.0], [2.0, 2.0, 4.0, 4.0, 8.0]
    result = timing.compare(ours, rival)
    assert result["ratio"] == 0.5
    assert (result["ratio_low"], result["ratio_high"]) == (0.5, 0.5)
    assert (result["ours_seconds"], result["rival_seconds"], result["pairs"]) == (2.0, 4.0, 5)
    assert timing.compare([3.0], [2.0])["ratio_low"] == 1.5
    with pytest.raises(ValueError, match="2 and 1"):
        timing.compare([1.0, 1.0], [1.0])


def test_calibration_makes_a_sample_last(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "perf_counter", lambda: clock.now)

    def takes(seconds):
        def function():
            clock.now += seconds

        return function

    loops, seconds = timing.calibrate(takes(1e-5), sample=5e-3)
    assert loops * 1e-5 >= 5e-3 and seconds == pytest.approx(1e-5)
    assert timing.calibrate(takes(3.0)) == (1, 3.0)
    assert clock.now == pytest.approx(3.0, abs=0.1)  # a long call is not repeated to warm it up


def test_number_of_pairs():
    assert timing.count_pairs(1e-3, 15) == timing.MOST_PAIRS
    assert timing.count_pairs(0.5, 3) == 15
    assert timing.count_pairs(3.0, 3) == 5
    assert timing.count_pairs(100.0, 3) == 3
    assert timing.count_pairs(100.0, 15) == 15


@pytest.mark.parametrize("option", [case for case in option_cases(quick=True) if case.rows == 64])
def test_sides_of_an_option_agree(option):
    ours, rival = (step() for step in options.contestants(option._replace(rows=20, width=16)))
    if option.name in LOSSES or option.option == "normalize":
        for a, b in zip(ours, rival, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", FAMILY)
def test_sides_of_the_family_agree(loss):
    ours, rival = (step() for step in family.contestants(FamilySize(loss, 24, 16)))
    for a, b in zip(ours, rival, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_family_is_measured_and_tabled():
    assert {size.loss for size in family.family_sizes()} == set(FAMILY)
    sizes = [size for size in family.family_sizes(quick=True) if size.rival == EAGER]
    called = [size for size in sizes if size.loss in LIBRARIES]
    assert {size.loss for size in called} == set(LIBRARIES)
    sizes += [size._replace(rival=LIBRARIES[size.loss].package) for size in called]
    eager, others = family.family_tables(size._asdict() | {"ratio": 1.5} for size in sizes)
    assert eager[1].count("**1.50**") == len(sizes) - len(called)
    assert others[1].count("**1.50**") == len(called)


@pytest.mark.parametrize("loss", LIBRARIES)
def test_other_libraries_agree(loss):
    package = installed(loss)
    if package is None:
        pytest.skip(f"{LIBRARIES[loss].package} is not installed")
    ours, theirs = (step() for step in family.contestants(FamilySize(loss, 24, 16, package)))
    for a, b in zip(ours, theirs, strict=False):  # ours: of a teacher's scores too, zeros
        torch.testing.assert_close(a, b if a.shape == b.shape else b.T, rtol=1e-4, atol=1e-5)


def test_options_of_every_loss_and_primitive_are_measured():
    assert {case.name for case in option_cases()} == set(NAMES)
    assert len(option_cases(quick=True)) < len(option_cases()) / 5


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat")
def test_neighbours_are_the_others():
    neighbours = Neighbours()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:  # our own work does not count
        pass
    assert 0 <= neighbours.cores() <= (os.cpu_count() or 1) + 0.5
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            neighbours = Neighbours()
            time.sleep(0.5)
            assert neighbours.cores() > 0.3
        finally:
            busy.kill()


def test_ours_and_rival_alternate():
    calls = []

    class Benchmark:
        extra_info = {}  # noqa: RUF012

        def pedantic(self, target, args, setup, rounds):
            calls.clear()  # forget the calibration
            for _ in range(rounds):
                setup()
                target(*args)

    benchmark = Benchmark()
    timing.measure_pairs(benchmark, lambda: calls.append("ours"), lambda: calls.append("rival"))
    info = benchmark.extra_info
    one_pair = ["rival"] * info["rival_loops"] + ["ours"] * info["loops"]
    assert calls == one_pair * len(info["rival_seconds"])
    assert len(info["rival_seconds"]) >= 15


@needs_peak
def test_peak_counts_the_highest_moment():
    meter = memory.PeakMeter()
    torch.empty(25 * MEGABYTES)  # no page of it is ever touched
    assert meter.extra_bytes() < 3e6
    for _ in range(3):
        torch.ones(25 * MEGABYTES)  # 100 MB, let go at once
        assert meter.extra_bytes() == pytest.approx(100e6, abs=3e6)
    torch.ones(10 * MEGABYTES)
    assert meter.extra_bytes() == pytest.approx(100e6, abs=3e6)
    assert memory.PeakMeter().extra_bytes() < 3e6  # each meter starts anew


@needs_peak
def test_peak_in_a_fresh_process():
    case = Case("nt_xent", 2048, 16)
    peak = measure_fresh(case, "eager", threads=1)["peak_extra_bytes"]
    # Logits, their log-softmax and its gradient are there at the same time.
    assert 3 <= peak / case.matrix_bytes < 4.5


def _raw_results():
    """What pytest-benchmark would write: 2 loops a sample of ours, 3 pairs, ours half of rival."""

    def timed(case, rival, ours, theirs):
        info = {"case": list(case), "rival": rival, "loops": 2, "rival_loops": 1}
        info |= {"rival_seconds": [theirs] * 3, "neighbours": 1.5 if case.rows == 16 else 0.0}
        return {"extra_info": info, "stats": {"data": [2 * ours] * 3}}

    def weighed(case, who, peak):
        info = {"case": list(case), "who": who, "peak_extra_bytes": peak, "seconds": 1.0}
        return {"extra_info": info, "stats": {"data": [2.0]}}

    goal = Case("nt_xent", 8192, 128)
    runs = [timed(goal, "product", 0.1, 0.05), timed(goal, "eager", 0.1, 0.8)]
    for rows in (16, 1024):
        small = Case("clip", rows, 128)
        runs += [timed(small, "eager", 1.25e-6 * rows, 1e-6 * rows)]
    option = {"option": ["info_nce", "where", 64, 128], "case": []}
    runs += [timed(goal, "eager", 0.1, 0.05) for _ in range(2)]
    runs[-2]["extra_info"] |= option
    runs[-1]["extra_info"] |= option | {"option": ["row_logsumexp", "below", 64, 128]}
    runs += [weighed(goal, "ours", 20_000_000), weighed(goal, "eager", 800_000_000)]
    runs += [weighed(Case("row_logsumexp", 1024, 128), "ours", 65_000_000)]
    machine = {"kind": "cpu-test-4c", "device": "Test CPU", "cores": 4, "threads": 4, "isa": "AVX2"}
    machine |= {"backend": "native", "versions": {"torch": "2.13"}}
    machine |= {"commit": "abc", "date": "2026-01-02T03:04:05"}
    return {"machine_info": machine, "benchmarks": runs}


def test_summary_and_tables():
    summary = json.loads(json.dumps(report.summarise(_raw_results())))
    time = report.by_case(summary["time"])
    assert time[Case("nt_xent", 8192, 128)]["product"]["ratio"] == pytest.approx(2.0)
    assert time[Case("nt_xent", 8192, 128)]["eager"]["ratio"] == pytest.approx(1 / 8)
    tables = report.report(summary)
    assert "| `nt_xent` | 8192 | 128 | 100 ms | 2.00 (2.00 to 2.00)" in tables
    assert "**1.25** (3 pairs)" in tables  # slower than eager is flagged
    assert "Slower than eager PyTorch: clip-16x128: 1.25, clip-1024x128: 1.25" in tables
    assert "| `info_nce`: where | **2.00** |" in tables
    assert "| below  | **2.00** |" in tables
    assert "| 65.0 MB" in tables and "**no**" in tables  # over a primitive's limit
    assert "Not a quiet machine: 1 of the timings" in tables
    assert "Test CPU, 4 cores, 4 threads, AVX2, native backend" in tables
    assert "row_logsumexp" not in report.report(summary, brief=True)


def test_tables_go_between_the_markers():
    begin, end = readme.markers("search")
    document = f"a\n{begin}\nold\n{end}\nb\n"
    once = readme.insert(document, "search", "new")
    assert once == f"a\n{begin}\n\nnew\n\n{end}\nb\n"
    assert readme.insert(once, "search", "new") == once
    with pytest.raises(ValueError, match="expected the lines"):
        readme.insert("no markers", "search", "new")


def test_plots_are_drawn_for_what_there_is(tmp_path):
    summary = report.summarise(_raw_results())
    assert plots.draw(summary, tmp_path) == [tmp_path / "time.png", tmp_path / "memory.png"]
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert plots.draw(summary | {"time": [], "memory": []}, tmp_path) == []


def test_committed_results_can_be_read():
    for summary in report.committed():
        assert report.report(summary)
