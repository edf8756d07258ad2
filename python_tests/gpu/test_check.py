"""``make gpu-check`` without a GPU: gone through whole, with Triton's real keys and nothing
launched, with faults and without, and from sources in another folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton is not installed")

from benchmarks.gpu import diagnosis, stages
from benchmarks.gpu.pool import NO_TIME
from benchmarks.gpu.records import set_aside
from benchmarks.gpu.worker import FAULTS
from tools.precompile import counts
from tools.precompile import missed as missed_cases
from tools.rehearsal import copied_sources

ROOT = Path(__file__).parents[2]
FILES = {"summary.json", "results.jsonl", "logs.tgz", "diagnosis.txt"}
CLIP, SEARCH = "clip-65536x768 ours", "topk-64x128-k10of2048 ours"


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", FAULTS)}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def check(*arguments, sources=ROOT, **more):
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(
        command, cwd=sources, env=environment(**more), capture_output=True, text=True
    )


def rehearse(folder, cache, *arguments, **more):
    done = check(
        "--rehearse", "keys", "--results", folder, "--commit", "abc123", *arguments,
        TRITON_CACHE_DIR=str(cache), **more,
    )  # fmt: skip
    assert {path.name for path in folder.iterdir()} == FILES, done.stderr
    return done, json.loads((folder / "summary.json").read_text())


def test_one_clear_line_without_a_gpu(tmp_path):
    done = check("--results", tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "gpu-check: PyTorch sees no CUDA GPU on this machine"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal_with_faults_and_one_elsewhere(tmp_path):
    """One test, since the second process looks for what the first has asked for."""
    faults = {
        CLIP: "hang", SEARCH: "crash", "row bfloat16 D=64 bounded": "break", "copy 2 GB": "fail",
        "python_tests/triton/test_configs.py::test_an_unknown_width_is_named": "fail",
    }  # fmt: skip
    done, summary = rehearse(tmp_path / "a", tmp_path / "keys", **{FAULTS: json.dumps(faults)})
    assert done.returncode == 1
    assert_every_stage_answered(summary, set(faults))
    goals = summary["results"]["goals"]
    assert "hangs: killed after 12 s" in goals[CLIP]["error"]
    assert "died of SIGABRT" in goals[SEARCH]["error"]
    assert_said(done.stdout, tmp_path / "a")

    with copied_sources() as sources:
        # The tests' own kernels take as long as all others.
        stages_of_it = "kernels", "ceilings", "goals", "candidates", "small"
        given = tmp_path / "b", tmp_path / "keys", "--only", *stages_of_it
        done, again = rehearse(*given, sources=sources)
    assert done.returncode == 0, done.stdout[-3000:]
    assert again["about"]["commit"] == "abc123"  # there is no git to ask
    # What the faulty cases need may have been asked for by none.
    missed = {line.partition(": ")[2].rpartition(": ")[0] for line in missed_cases(again)}
    assert counts(again)[0] > 300 and missed <= set(faults), missed


def assert_every_stage_answered(summary, faulty):
    assert list(summary["results"]) == [stage.name for stage in stages.FIRST]
    for stage in stages.FIRST:
        results = summary["results"][stage.name]
        if stage.cases is not None:
            assert set(results) == set(stage.cases)
        failed = {case for case, result in results.items() if "error" in result}
        assert failed == faulty & set(results), stage.name
    tests = summary["results"]["tests"]
    assert sum(result.get("outcome") == "passed" for result in tests.values()) > 200
    assert counts(summary)[1] > 300


def assert_said(printed, folder):
    text = (folder / "diagnosis.txt").read_text().strip()
    assert printed.strip().endswith(text) and len(text) <= diagnosis.MOST
    assert "commit abc123" in text and "a rehearsed failure" in text
    assert "clip-65536x768: hangs: killed" in text
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(lines) > 400 and {"stage", "case", "at"} <= set(lines[0])
    with tarfile.open(folder / "logs.tgz") as tar:
        assert any("goals-" in name for name in tar.getnames())


@pytest.mark.slow
def test_the_second_form(tmp_path):
    stages_of_it = "uses", "sanitizer"
    done, summary = rehearse(tmp_path / "a", tmp_path, "--second", "--only", *stages_of_it)
    assert done.returncode == 0, done.stdout
    assert list(summary["results"]) == ["environment", *stages_of_it]
    assert "[sanitizer]" in done.stdout and "memcheck slabs: went well" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_learnt_is_on_disk_when_it_is_ended(tmp_path, number):
    command = [
        *(sys.executable, "-m", "benchmarks.gpu", "--rehearse", "keys", "--results", tmp_path),
        *("--only", "environment", "goals"),
    ]
    more = {FAULTS: json.dumps({CLIP: "hang"}), "TRITON_CACHE_DIR": str(tmp_path / "keys")}
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=environment(**more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    summary = tmp_path / "summary.json"
    until = time.perf_counter() + 60
    while not summary.exists() and time.perf_counter() < until:
        time.sleep(0.1)
    assert process.stdout is not None
    process.stdout.close()  # nobody reads on
    for _ in range(3):
        process.send_signal(number)
    assert process.stderr is not None
    assert f"ended by {number.name}" in process.stderr.read() and process.wait(30) == 1
    assert "machine" in json.loads(summary.read_text())["results"]["environment"]
    assert (tmp_path / "logs.tgz").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    done = check(
        "--rehearse", "keys", "--results", blocked / "results", "--only", "environment",
        TRITON_CACHE_DIR=str(tmp_path / "keys"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "cannot write to" in done.stdout.splitlines()[0]
    elsewhere = Path(done.stdout.splitlines()[0].rpartition(" ")[2])
    assert (elsewhere / "summary.json").exists()
    shutil.rmtree(elsewhere)


def test_what_is_unknown_is_named():
    done = check("--rehearse", "keys", "--only", "goal")
    assert done.returncode == 1 and "expected some of environment, kernels" in done.stderr
    done = check("--rehearse", "keys", "--only", "goals", "--match", "nothing like this")
    assert done.returncode == 1 and "no case has 'nothing like this'" in done.stderr


def test_stages_without_time_are_named_and_start_nothing(tmp_path):
    done, summary = rehearse(
        tmp_path / "a", tmp_path, "--seconds", "0.01", "--only", "goals", "small"
    )  # fmt: skip
    results = summary["results"]
    assert done.returncode == 1 and list(results) == ["environment", "goals", "small"]
    assert {r["error"] for cases in results.values() for r in cases.values()} == {NO_TIME}
    assert "no time was left for" in done.stdout


def test_an_earlier_run_is_kept(tmp_path):
    for name in FILES - {"logs.tgz"}:
        (tmp_path / name).write_text(name)
    (tmp_path / "earlier-1").mkdir()
    assert str(tmp_path / "earlier-2") in set_aside(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"earlier-1", "earlier-2"}
    assert (tmp_path / "earlier-2" / "summary.json").read_text() == "summary.json"
    assert set_aside(tmp_path) == ""


@pytest.mark.parametrize("form", stages.FORMS)
def test_all_stages_fit_the_time(form):
    named = stages.FORMS[form]
    assert sum(stage.seconds for stage in named) <= stages.SECONDS
    assert len({stage.name for stage in named}) == len(named)
    if form == "first":
        kernels = [stage.name for stage in named].index("goals")
        assert sum(stage.seconds for stage in named[: kernels + 1]) < 220
