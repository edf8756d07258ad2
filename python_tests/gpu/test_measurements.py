"""What the GPU check measures and how it judges, on the CPU, with CUDA's clock imitated."""

import math
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton.language", reason="Triton is not installed")

from benchmarks.gpu import (
    candidates,
    ceilings,
    compare,
    contestants,
    correct,
    diagnosis,
    measure,
    smoke,
    uses,
)
from benchmarks.gpu.cases import GOALS, HUGE, SEARCHES, SMALL, GpuCase
from benchmarks.gpu.pool import NO_TIME
from benchmarks.gpu.records import Records
from cl_kernels.backends.gpu import cuts
from cl_kernels.backends.triton import configs
from cl_kernels.backends.triton.table import CANDIDATES

MODULES = (candidates, ceilings, measure)


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1000


@pytest.fixture
def imitated(monkeypatch):
    """Workers' tensors on the CPU, and a CUDA whose clock is the host's."""
    for module in MODULES:
        monkeypatch.setattr(module, "device", lambda large=False: "cpu")
        monkeypatch.setattr(module, "rehearsed", lambda: False)
    for name, value in {
        "Event": Event,
        "synchronize": lambda: None,
        "memory_allocated": lambda: 1000,
        "max_memory_allocated": lambda: 10**6,
        "reset_peak_memory_stats": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(measure, "MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(ceilings, "SECONDS", 0.01)


@pytest.mark.parametrize("name", ["clip", "nt_xent", "info_nce", "row_logsumexp"])
def test_a_case_is_timed_and_weighed(imitated, name):
    case = GpuCase(name, 96, 48)
    for who in ("ours", "eager", "product"):
        if name == "row_logsumexp" and who == "eager":
            continue
        found = measure.measure(case, who, measure.MAKERS[who])
        assert 0 < found["least"] <= found["seconds"] < 1 and found["samples"] >= measure.LEAST
        assert found["peak_extra_bytes"] > 0
        assert ("kernels" in found) == (who == "ours")


def test_searches_and_their_filters(imitated):
    for name in ("topk", "topk_filtered"):
        case = GpuCase(name, 48, 16, keys=96, k=5)
        assert measure.measure(case, "ours", contestants.ours)["seconds"] > 0


def test_pairs(imitated):
    found = measure.measure_pair(GpuCase("nt_xent", 64, 16))
    assert found["ratio"] == pytest.approx(found["ours_seconds"] / found["rival_seconds"], rel=1.0)


def test_a_long_call_is_sampled_once(monkeypatch):
    monkeypatch.setattr(measure, "sample", lambda step, loops: 3.0)
    assert measure.plan(lambda: None) == (1, 1)
    monkeypatch.setattr(measure, "sample", lambda step, loops: 1e-6)
    loops, count = measure.plan(lambda: None)
    assert loops == 5000 and count == measure.MOST


def test_out_of_memory_is_a_result(monkeypatch):
    def no_memory():
        raise torch.OutOfMemoryError("...")

    monkeypatch.setitem(measure.CASES, "huge ours", no_memory)
    assert measure.work("huge ours") == {"error": "out of memory"}


def test_ceilings(imitated):
    found = ceilings.product(64, 48, 32)
    assert found["flop a second"] == pytest.approx(2 * 64 * 48 * 32 / found["seconds"])
    assert ceilings.copy(4096)["bytes a second"] > 0 and ceilings.reading(4096)["bytes"] == 4096


def test_every_case_of_the_goals_is_measured():
    for case in (*GOALS, *SEARCHES, HUGE):
        assert f"{case} ours" in measure.CASES
    assert all(f"{case} pair" in measure.CASES for case in SMALL)
    assert set(measure.rivals(GOALS)) <= set(measure.CASES)
    assert {c.rows for c in SMALL if c.name == "clip"} == {64, 256, 1024, 4096}
    forward = {c.width: c.product_flop / c.goal / 1e12 for c in GOALS if c.forward_only}
    assert forward == pytest.approx({512: 650, 768: 690, 1024: 710})


def test_a_use_that_differs_or_is_nan_is_an_error(monkeypatch):
    monkeypatch.setattr(uses, "rehearsed", lambda: False)
    right, nan = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert "error" not in uses.judged(gradient=compare.largest([compare.relative(right, right)]))
    for found in ([0.0, compare.relative(nan, right)], [compare.relative(right, nan), 0.0], [0.1]):
        assert "gradient differs" in uses.judged(gradient=compare.largest(found))["error"]


def test_a_candidate_is_tried_and_today_is_restored():
    for candidate in candidates.TRIED:
        assert set(candidate.lines) <= set(CANDIDATES)
        with candidate.tried():
            for (arch, family, kind, width), config in candidate.lines.items():
                assert configs.candidates(arch, family, kind, width) == [config]
            assert candidate.slabs == cuts.SLAB_SHAPE
        assert cuts.SLAB_SHAPE is None
    assert configs.candidates(90, "weights", "half", 768)[0] == configs.configured(
        90, "weights", "half", 768
    )
    assert {key for c in candidates.TRIED for key in c.lines} == set(CANDIDATES)


@pytest.mark.parametrize("faster", [True, False])
def test_a_candidate_that_is_faster_is_printed_as_a_line(imitated, monkeypatch, faster):
    candidate = candidates.TRIED[0]
    monkeypatch.setattr(candidates, "CASES", {"a": candidate})
    small = candidate.case._replace(rows=32)
    monkeypatch.setattr(candidates.contestants, "make_inputs", lambda case, where: [])
    monkeypatch.setattr(candidates.contestants, "ours", lambda case, inputs: lambda: torch.ones(3))

    def sample(step, loops):
        tried = len(configs.candidates(90, "weights", "half", 768)) == 1
        return (0.8 if tried == faster else 1.0) * 1e-3

    monkeypatch.setattr(candidates, "sample", sample)
    monkeypatch.setattr(measure, "sample", sample)
    found = candidates.work("a")
    assert found["ratio"] == pytest.approx(0.8 if faster else 1.25)
    assert candidates.worth(found) == faster and ("lines" in found) == faster
    if faster:
        assert any("'weights', 'half', 4096): Config(BLOCK_M=128" in x for x in found["lines"])
    assert small.rows == 32


def test_a_candidate_whose_results_differ_is_an_error():
    right, wrong = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 1.1])
    assert candidates.disagreement((right,), (right,)) == 0
    assert candidates.disagreement(wrong, right) > candidates.AGREE
    values, found = torch.ones(4), torch.arange(4)
    assert candidates.disagreement((values, found), (values, found.flip(0))) == 1
    for broken in ((right, right * torch.nan), (right * torch.nan, right)):
        assert candidates.disagreement(broken, (right, right)) == math.inf


@pytest.mark.parametrize("shape", [(8448, 8448), (16896, 7936)])
def test_slabs_of_a_given_shape_cover_everything(monkeypatch, shape):
    monkeypatch.setattr(cuts, "SLAB_SHAPE", shape)
    blocks = list(cuts.Slabs.of(65536, 65536, itemsize=2))
    assert sum((r.stop - r.start) * (c.stop - c.start) for r, c in blocks) == 65536**2
    assert blocks[0] == (slice(0, shape[0]), slice(0, shape[1]))


def records(tmp_path):
    return Records(tmp_path, {"commit": "abc"})


def test_a_diagnosis_says_what_matters_in_few_characters(tmp_path):
    found = records(tmp_path)
    about = {"device": "NVIDIA H100", "versions": {"torch": "2.11"}}
    found.add("environment", "machine", about | {"hits": 3, "misses": 1})
    wrong = {"ok": False, "worst": "grad key", "times_allowed": 7.25, "errors": {}}
    found.add("kernels", "row bfloat16 D=64", wrong)
    found.add("kernels", "row bfloat16 D=128", {"ok": True, "worst": "row", "times_allowed": 0.3})
    found.add("ceilings", "product 8192^3", {"flop a second": 7.9e14, "seconds": 1e-3})
    seconds = {"seconds": 43.2e-3, "peak_extra_bytes": 10**8, "kernels": {"weights_kernel": 0.02}}
    found.add("goals", f"{GOALS[0]} ours", seconds)
    tried = str(candidates.TRIED[0])
    faster = {"seconds": 0.04, "today": 0.05, "ratio": 0.8, "spread": 0.01, "lines": ["  (90,): x"]}
    found.add("candidates", tried, faster)
    found.add("tests", "test_a", {"outcome": "passed"})
    found.add("tests", "test_b", {"outcome": "failed", "error": "AssertionError: off"})
    found.add("small", f"{SMALL[0]} pair", {"ratio": 0.5})
    found.add("small", f"{SMALL[1]} pair", {"error": NO_TIME})
    text = diagnosis.diagnose(found)
    for part in (
        "NVIDIA H100; torch 2.11; commit abc",
        "found in the cache: 3, compiled here: 1 (machine)",
        "row bfloat16: 1 of 2 right; worst grad key 7.2 of what is allowed",
        "product 8192^3: 790 TF",
        "clip-65536x768: 43.2 ms, predicted 48.7, goal 46, 100.0 MB; weights_kernel 20",
        f"{tried}: 40 for 50 ms, 0.800",
        "new line: (90,): x",
        "1 passed, 1 failed",
        "nt_xent-128x128 0.50",
        "row bfloat16 D=64: grad key: 7.25 times the allowed",
        "test_b: AssertionError: off",
        "no time was left for 1",
    ):
        assert part in text, part
    found.save(text)
    assert (tmp_path / "diagnosis.txt").read_text() == text + "\n"


def test_the_end_of_a_flooded_log_is_kept(tmp_path):
    found = records(tmp_path)
    (found.logs / "goals-1.log").write_bytes(b"x" * 10**6 + b"the end")
    found.save("diagnosis")
    with tarfile.open(tmp_path / "logs.tgz") as tar:
        (entry,) = tar.getmembers()
        content = tar.extractfile(entry).read()
    assert entry.name == "logs/goals-1.log" and content.endswith(b"the end")
    assert len(content) == 256 * 1024


def test_a_folder_that_can_no_longer_be_written_to_stops_nothing(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    found = Records(folder, {"commit": "abc"})
    found.add("tests", "a", {"outcome": "passed"})
    found.lines.close()
    found.lines = Path("/dev/full").open("w")  # noqa: SIM115  # as a disk without space
    folder.rename(tmp_path / "gone")
    found.add("tests", "b", {"outcome": "passed"})
    assert "No space left" in found.unwritten
    found.save("diagnosis")
    assert "No such file" in found.unwritten and len(found.results["tests"]) == 2


def test_however_much_fails_a_diagnosis_stays_short(tmp_path):
    found = records(tmp_path)
    for check in correct.CHECKS:
        found.add("kernels", check, {"error": "x" * 300})
    for i in range(300):
        found.add("tests", f"python_tests/test_{i}.py::test", {"error": "y" * 300})
    for case in measure.CASES:
        found.add("goals", case, {"error": "z" * 300})
    text = diagnosis.diagnose(found)
    assert len(text) <= diagnosis.MOST
    assert "[failures]" in text and "tests: 300 failed" in text


@pytest.mark.parametrize("part", smoke.PARTS)
def test_what_the_sanitizer_watches_runs(part):
    smoke.PARTS[part]("cpu")


def test_a_profile_that_fails_spoils_no_measurement(imitated, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.profiler", None)
    found = measure.measure(GpuCase("clip", 32, 16), "ours", contestants.ours)
    assert found["seconds"] > 0 and next(iter(found["kernels"])).startswith("no profile")
