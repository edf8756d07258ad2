"""``make gpu-check`` without a GPU: its stages, its dry run, and that it refuses to start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import measure, report, stages
from benchmarks.gpu.cases import GOALS, HUGE, SEARCHES, SMALL, GpuCase
from benchmarks.gpu.stages import Stage

ROOT = Path(__file__).parents[1]


def check(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_one_clear_line_without_a_gpu(tmp_path):
    done = check("--results", tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "gpu-check: PyTorch sees no CUDA GPU on this machine"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_dry_run(tmp_path):
    done = check("--results", tmp_path, "--dry-run", "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    stage_results = json.loads((folder / "check.json").read_text())["stages"]
    assert {s["name"]: s["result"] for s in stage_results} == {
        "build": "left out of a dry run",
        "smoke": "passed",
        "tests on the GPU": "passed",
        "memcheck": "left out of a dry run",
        "racecheck": "left out of a dry run",
        "measure goals": "passed",
        "measure topk": "passed",
        "measure small": "passed",
        "measure huge": "passed",
    }
    goals = json.loads((folder / "goals.json").read_text())
    assert goals["machine"]["commit"] == "abc"
    measured = {(e["name"], e["who"]): e for e in goals["measured"]}
    assert {who for _, who in measured} >= {"ours", "eager", "product", "compiled"}
    assert all(e["seconds"] > 0 for e in measured.values())
    assert "| info_nce, deterministic | 96" in done.stdout
    assert "| topk, 5 of 96 " in done.stdout and "| topk_filtered, 5 of 96 " in done.stdout
    assert "Not installed here" in done.stdout


def run(tmp_path, *code, seconds=20.0, left=100.0, **stage):
    command = [sys.executable, "-c", "; ".join(code)]
    return stages.run(Stage("a stage", seconds, command, **stage), tmp_path, left)


def test_a_stage_passes_fails_and_runs_out_of_time(tmp_path):
    passed = run(tmp_path, "import os", "print(os.environ['X'])", environment={"X": "hello"})
    assert (passed.result, passed.good) == ("passed", True)
    assert stages.ending(tmp_path / passed.log).strip() == "hello"
    failed = run(tmp_path, "raise SystemExit(3)")
    assert (failed.result, failed.good) == ("failed (3)", False)
    late = run(tmp_path, "import time", "time.sleep(60)", seconds=1.0, left=6.0)
    assert (late.result, late.good) == ("out of time", False)
    assert late.seconds < 30


def test_a_stage_that_cannot_run_is_named(tmp_path):
    absent = run(tmp_path, "", missing="no cmake", required=False)
    assert (absent.result, absent.good) == ("no cmake", True)
    assert not run(tmp_path, "", missing="no sanitizer").good
    assert run(tmp_path, "", left=1.0).result == "no time left"


def test_what_a_suite_may_take_follows_what_is_left(tmp_path):
    stage = Stage("measure", 100, [sys.executable, "-c", PRINT, "--seconds", "100"])
    outcome = stages.run(stage, tmp_path, left=40)
    assert float(stages.ending(tmp_path / outcome.log)) == 30  # the last quarter is for ending


PRINT = "import sys; print(sys.argv[-1])"


def test_all_stages_fit_into_nine_minutes(tmp_path):
    named = stages.stages("90a-real", tmp_path, "abc")
    assert [s.name for s in named][-1] == "measure huge"
    must = [s for s in named if s.required or s.name == "build"]
    # Rarely does a stage take all it may; what comes last is what may be missed.
    assert sum(s.seconds for s in must[:-1]) <= 525


def test_cases_are_those_of_the_goals():
    assert GpuCase("clip", 65536, 768, goal=46e-3) in GOALS
    forward = {c.width: c.product_flop / c.goal / 1e12 for c in GOALS if c.forward_only}
    assert forward == pytest.approx({512: 650, 768: 690, 1024: 710})
    assert HUGE.rows == 1_048_576
    searches = {(c.rows, c.keys, c.width, c.k): c.goal for c in SEARCHES if c.name == "topk"}
    assert searches[16384, 100_000, 128, 10] == 1.1e-3
    assert searches[8192, 65536, 256, 16] == 0.75e-3
    assert searches[1000, 10**6, 768, 10] == 3.6e-3
    assert {c.rows for c in SMALL if c.name == "clip"} == {64, 256, 1024, 4096}
    assert {c.rows for c in SMALL if c.name == "nt_xent"} == {128, 512, 2048, 8192}


def test_errors_and_lack_of_time_are_results():
    assert "boom" in measure.safely(lambda: exec("raise ValueError('boom')"), False)["error"]

    def no_memory():
        raise torch.OutOfMemoryError("...")

    assert measure.safely(no_memory, True)["error"] == "out of memory"
    assert not torch.are_deterministic_algorithms_enabled()
    ((_, _, late),) = measure.run("huge", (HUGE,), "cpu", until=0.0)
    assert late == {"error": "no time left"}


def test_tables():
    case = GpuCase("clip", 64, 128, goal=1e-3)
    ours = {**case._asdict(), "who": "ours", "seconds": 2e-3, "peak_extra_bytes": 10**6}
    eager = {**case._asdict(), "who": "eager", "error": "out of memory"}
    goals = report.goals_table({"measured": [ours, eager]})
    assert "2 ms" in goals and "2.00" in goals and "out of memory" in goals and "1.0 MB" in goals
    pair = {"who": "pair", "ratio": 1.5, "ours_seconds": 3e-6, "rival_seconds": 2e-6}
    assert "**1.50**" in report.small_table({"measured": [case._asdict() | pair]})
