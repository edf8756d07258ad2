"""The pool of worker processes: what hangs, crashes, fails or loses the GPU is one case."""

import os
import re
import threading
import time
from time import perf_counter

import pytest

from benchmarks.gpu.pool import NO_START, NO_TIME, STARTS, Pool, Setting, Stage, Worker

KIND = "python_tests.gpu.kinds"


@pytest.fixture
def setting(tmp_path):
    return Setting(tmp_path, dict(os.environ, OMP_NUM_THREADS="1"))


def run(setting, *cases, seconds=60.0, kind=KIND, **options):
    results = {}
    stage = Stage("a stage", kind, cases, seconds, **options)
    Pool(stage, setting).run(perf_counter() + seconds, results.__setitem__)
    assert set(results) == set(cases)
    return results


def test_faults_are_results_and_cost_no_other_case(setting):
    faults = "hang", "crash", "exit", "break", "fail"
    cases = [case for fault in faults for case in (f"well before {fault}", fault)]
    start = perf_counter()
    found = run(setting, *cases, "well at last", case_seconds=2.0)
    assert perf_counter() - start < 50
    assert found["hang"]["error"] == "hangs: killed after 2 s"
    assert found["crash"]["error"] == "died of SIGABRT: last words"
    assert found["exit"]["error"].startswith("exited with 3")
    assert found["fail"]["error"] == "ValueError: what went wrong"
    assert found["break"]["error"] == "Broken: the GPU is lost" and found["break"]["broken"]
    well = [found[case]["pid"] for case in [*cases[::2], "well at last"]]
    # A process that only failed goes on; every other is replaced.
    assert well[-1] == well[-2] and len(set(well)) == len(faults)


def test_a_process_for_every_case(setting):
    found = run(setting, "a", "b", "c", fresh=True)
    assert len({result["pid"] for result in found.values()}) == 3


def test_several_processes_share_the_cases(setting):
    found = run(setting, *(f"wait {i}" for i in range(8)), processes=2)
    assert len({result["pid"] for result in found.values()}) == 2


def test_what_there_is_no_time_for_is_named(setting):
    found = run(setting, "wait", "late", seconds=0.0)
    assert {result["error"] for result in found.values()} == {NO_TIME}


def test_a_stage_ends_in_time_whatever_hangs(setting):
    pool = Pool(Stage("a stage", KIND, ("well", "hang", "late"), 60, case_seconds=60.0), setting)
    assert all(worker.ready(perf_counter() + 60) for worker in pool.living)
    found = {}
    start = perf_counter()
    pool.run(start + 5.0, found.__setitem__)
    assert perf_counter() - start < 20
    assert found["late"]["error"] == NO_TIME
    assert re.fullmatch("ran for [45] s when the stage's time was over", found["hang"]["error"])


def test_processes_that_do_not_start_end_the_stage(setting):
    found = run(setting, *map(str, range(STARTS + 3)), kind="python_tests.is_not_there")
    errors = [result["error"] for result in found.values()]
    assert all("No module named" in error for error in errors[:STARTS])
    assert set(errors[STARTS:]) == {NO_START}


def test_no_process_is_left_behind(setting):
    """Neither those that wait nor those that work, when a run is ended from outside."""
    pool = Pool(Stage("a stage", KIND, ("hang",), 60, processes=2), setting)
    workers = list(pool.living)
    assert all(worker.ready(perf_counter() + 60) for worker in workers)
    results = {}
    running = threading.Thread(target=pool.run, args=(perf_counter() + 60, results.__setitem__))
    running.start()
    time.sleep(0.5)
    pool.end()
    running.join(10)
    assert not running.is_alive() and not results
    assert len(workers) == 2 and all(w.process.poll() is not None for w in workers)


def test_an_answer_to_another_case_is_none(setting, monkeypatch):
    """One line too many must not shift the results of the cases after it."""
    monkeypatch.setattr(Worker, "_line", lambda self, until: '{"case": "a", "pid": 1}')
    found = run(setting, "a", "b")
    assert found["a"] == {"pid": 1}
    assert found["b"] == {"error": "answered a instead", "broken": True}


@pytest.mark.parametrize("said", ["{not json", "5", "[]", "null"])
def test_garbage_from_a_process_is_a_result(setting, monkeypatch, said):
    monkeypatch.setattr(Worker, "_line", lambda self, until: said)
    found = run(setting, "a", "b")
    assert all(result["error"] == f"said what is no result: {said}" for result in found.values())
