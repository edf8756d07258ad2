"""Runs the suites, prints the tables, writes summary.json, time.png and memory.png."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.losses.cases import NAMES
from benchmarks.losses.libraries import missing
from benchmarks.losses.plots import draw
from benchmarks.losses.report import report, summarise
from benchmarks.neighbours import warn_if_busy
from benchmarks.report import RESULTS
from catalogue.family import FAMILY

SUITES = {
    "time": "bench_time.py",
    "options": "bench_options.py",
    "family": "bench_family.py",
    "memory": "bench_memory.py",
}
ALL = (*NAMES, *FAMILY)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a subset of a few minutes")
    parser.add_argument("--case", nargs="+", choices=ALL, default=ALL, help="only these")
    parser.add_argument("--suite", nargs="+", choices=SUITES, default=tuple(SUITES))
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    everything = set(options.case) == set(ALL) and set(options.suite) == set(SUITES)
    partial = options.quick or not everything or options.threads != machine.cores()
    folder = options.results / machine.describe()["kind"] / ("partial" if partial else "")
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.json"
    raw.unlink(missing_ok=True)
    warn_if_busy()
    if "family" in options.suite and missing():
        print(f"Not installed, so their classes are not timed: {', '.join(missing())}")
    here = Path(__file__).parent
    failed = pytest.main([
        *(str(here / SUITES[suite]) for suite in options.suite),
        "-v", "-p", "no:cacheprovider", "--benchmark-quiet",
        f"--benchmark-json={raw}", f"--threads={options.threads}",
        *(f"--case={name}" for name in options.case), *["--quick"] * options.quick,
    ])  # fmt: skip
    if not raw.exists():
        return int(failed) or 1
    summary = summarise(json.loads(raw.read_text()))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print("\n" + report(summary) + "\n")
    for path in [folder / "summary.json", *draw(summary, folder)]:
        print(path)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
