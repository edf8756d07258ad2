"""The stages of ``make gpu-check`` and how one is run: a process, a log, and so much time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[2]
CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what deterministic algorithms ask for
TESTS = "python_tests/triton", "python_tests/test_cuda.py"


@dataclass
class Stage:
    name: str
    seconds: float  # it is ended after them
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""  # why it cannot be run here
    required: bool = True  # whether being left out counts as a failure


@dataclass
class Outcome:
    name: str
    result: str  # "passed", "failed", "out of time" or why it was left out
    seconds: float
    good: bool  # nothing that must work failed
    log: str = ""


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def build_stage(arch: str) -> Stage:
    absent = [tool for tool in ("cmake", "ninja") if not _found(tool)]
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    stage = Stage("build", 90, command, {"CUDAARCHS": arch}, required=False)
    if absent:
        stage.missing = f"{' and '.join(absent)} not found: going on without compiled libraries"
    return stage


def _found(tool: str) -> str | None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(tool, path=path)


def test_stage() -> Stage:
    # Kernels are compiled on the CPU: several processes at once, where pytest-xdist is there.
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    command = module("pytest", "-q", "--maxfail=20", *workers, *TESTS)
    return Stage("tests on the GPU", 120, command, CUBLAS | _python_path())


def sanitizer_stage(tool: str) -> Stage:
    sanitizer = _found("compute-sanitizer")
    command = [
        *(sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"),
        *("--target-processes", "application-only", "--print-limit", "20"),
        *module("benchmarks.gpu.smoke"),
    ]
    # Every tensor an allocation of its own, so that reading past one shows.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} | CUBLAS
    missing = "" if sanitizer else "compute-sanitizer not found"
    return Stage(tool, 50, command, environment, missing)


def measure_stage(
    suite: str, seconds: float, folder: Path, commit: str, *more: str, required: bool = True
) -> Stage:
    command = module("benchmarks.gpu.measure", suite, folder, "--seconds", seconds, *more)
    command += ["--commit", commit] if commit else []
    return Stage(f"measure {suite}", seconds, command, CUBLAS, required=required)


def _python_path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))}


def stages(arch: str, folder: Path, commit: str) -> list[Stage]:
    """In the order they run, and so of interest: later ones take what time is left."""
    return [
        build_stage(arch),
        # Before the sanitizer, so that it finds the kernels compiled.
        Stage("smoke", 60, module("benchmarks.gpu.smoke"), CUBLAS),
        test_stage(),
        measure_stage("goals", 100, folder, commit),
        measure_stage("topk", 55, folder, commit),
        sanitizer_stage("memcheck"),
        sanitizer_stage("racecheck"),
        measure_stage("small", 90, folder, commit),
        measure_stage("huge", 150, folder, commit, required=False),
    ]


def dry_stages(folder: Path, commit: str) -> list[Stage]:
    """The same on CPU tensors of tiny sizes: what is built and sanitized on a GPU is left out."""
    suites = (
        measure_stage(suite, 120, folder, commit, "--dry-run")
        for suite in ("goals", "topk", "small", "huge")
    )
    left_out = "left out of a dry run"
    smoke = module("benchmarks.gpu.smoke", "--device", "cpu")
    tests = module("pytest", "-q", "-p", "no:cacheprovider", "python_tests/test_cuda.py")
    return [
        Stage("build", 0, missing=left_out, required=False),
        Stage("smoke", 120, smoke),
        Stage("tests on the GPU", 120, tests, {"CL_KERNELS_TEST_DEVICE": "cpu"} | _python_path()),
        *(Stage(t, 0, missing=left_out, required=False) for t in ("memcheck", "racecheck")),
        *suites,
    ]


def run(stage: Stage, folder: Path, left: float) -> Outcome:
    """Runs a stage within its time and what is left of all."""
    if stage.missing:
        return Outcome(stage.name, stage.missing, 0.0, good=not stage.required)
    seconds = min(stage.seconds, left)
    if left < 5:
        return Outcome(stage.name, "no time left", 0.0, good=not stage.required)
    command = list(stage.command)
    if "--seconds" in command:  # it starts nothing in the last part of them, so that it can end
        command[command.index("--seconds") + 1] = str(seconds - min(20.0, seconds / 4))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONUNBUFFERED": "1", **stage.environment}
    log = folder / f"{stage.name.replace(' ', '-')}.log"
    start = perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started as well
            process.wait()
            status = None
    result = {None: "out of time", 0: "passed"}.get(status, f"failed ({status})")
    return Outcome(stage.name, result, perf_counter() - start, status == 0, log.name)


def ending(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    text = log.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in text[-lines:])
