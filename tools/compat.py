"""Runs what meets torch's own interfaces under the oldest and the newest torch.

    python -m tools.compat                                     both
    python -m tools.compat 2.14                                one
    python -m tools.compat --python 2.11=/path/to/bin/python   in an environment that is there

Each torch gets an environment in build/compat; the compiled libraries are this checkout's, built
once. Prints a table and the first line of every failure; build/compat/VERSION.log has the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from benchmarks.machine import ROOT

OLDEST, NEWEST = "2.11", "2.14"
FOLDER = ROOT / "build" / "compat"
PACKAGES = "numpy", "pytest", "hypothesis"

# They need nothing but torch and PACKAGES.
TESTS = (
    "test_public",
    "test_defaults",
    "test_machines",
    "packaging/test_first_call",
    "test_compile",
    "test_autograd_contexts",
    "test_threads",
    "test_inputs",
    "test_dispatch",
    "statistics/test_operations",
    "statistics/test_primitives",
    "statistics/test_options",
    "statistics/test_nonfinite",
    "statistics/test_determinism",
    "losses/test_modules",
    "losses/test_textbook",
    "losses/test_hardest",
    "search/test_calls",
    "search/test_native",
    "grad_cache/test_replay",
    "grad_cache/test_backward",
    "grad_cache/test_refusals",
    "grad_cache/test_ddp",
    "grad_cache/test_step",
    "grad_cache/test_as_loss",
    "memory/test_queue",
    "memory/test_bank",
    "memory/test_momentum",
    "memory/test_ranks",
    "distributed/test_losses",
    "distributed/test_contexts",
    "distributed/test_rows",
    "distributed/test_search",
)

_PROBE = """
import json, platform, torch, cl_kernels
serving = cl_kernels.doctor().serving["cpu"]
print(json.dumps([torch.__version__, platform.python_version(), serving]))
"""


class Outcome(NamedTuple):
    """What the tests came to; ``failures`` are pairs of a test and the first line of its error."""

    passed: int
    skipped: int
    failures: list[tuple[str, str]]


def make_environment(version: str) -> Path:
    """The Python of an environment with this torch, made where it is not yet."""
    python = FOLDER / version / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER / version)], check=True)
    if subprocess.run([python, "-c", "import torch, numpy, pytest, hypothesis"]).returncode:
        install = [python, "-m", "pip", "install", "-q", f"torch=={version}.*", *PACKAGES]
        subprocess.run(install, check=True)
    return python


def outcome(report: Path) -> Outcome:
    """Reads the XML that pytest leaves."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures = list(_failures(cases))
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Outcome(len(cases) - skipped - len(failures), skipped, failures)


def _failures(cases: list[ElementTree.Element]) -> Iterator[tuple[str, str]]:
    for case in cases:
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is not None:
                place = case.get("classname", "").removeprefix("python_tests.")
                yield f"{place}::{case.get('name')}", found.get("message", "").partition("\n")[0]
                break


def run(version: str, python: Path) -> tuple[list[str], Outcome]:
    """(torch, Python, the backend that serves CPU tensors), and what the tests came to."""
    probe = subprocess.run([python, "-c", _PROBE], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    report = FOLDER / f"{version}.xml"
    report.unlink(missing_ok=True)  # none of an earlier run must look like this one's
    command = [
        *(str(python), "-m", "pytest", "-q", "-rs", "--tb=short", "-p", "no:cacheprovider"),
        *(f"--junitxml={report}", *(f"python_tests/{name}.py" for name in TESTS)),
    ]
    with (FOLDER / f"{version}.log").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if not report.exists():
        sys.exit(f"compat: pytest ended with {done.returncode}: see {FOLDER / version}.log")
    return json.loads(probe.stdout), outcome(report)


def _interpreter(given: str) -> tuple[str, Path]:
    version, separator, path = given.partition("=")
    if not separator or not Path(path).exists():
        raise argparse.ArgumentTypeError(f"expected VERSION=PATH of a Python, got {given}")
    return version, Path(path)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("versions", nargs="*", default=[OLDEST, NEWEST], metavar="VERSION")
    parser.add_argument(
        "--python", type=_interpreter, action="append", default=[], metavar="VERSION=PATH"
    )
    options = parser.parse_args()
    given = dict(options.python)
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = False
    print("| torch | Python | CPU tensors | passed | skipped | failed |\n|---|---|---|---|---|---|")
    for version in options.versions:
        about, (passed, skipped, failures) = run(
            version, given.get(version) or make_environment(version)
        )
        print(f"| {' | '.join(about)} | {passed} | {skipped} | {len(failures)} |", flush=True)
        for test, message in failures:
            print(f"  {test}: {message}", file=sys.stderr)
        failed |= bool(failures) or about[2] != "native"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
