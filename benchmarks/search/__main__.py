"""Runs the suite, prints the tables, writes search.json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.neighbours import warn_if_busy
from benchmarks.report import RESULTS
from benchmarks.search.report import report, summarise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small corpus: half a minute")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    options = parser.parse_args()
    partial = options.quick or options.threads != machine.cores()
    folder = options.results / machine.describe()["kind"] / ("partial" if partial else "")
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "search-raw.json"
    raw.unlink(missing_ok=True)
    warn_if_busy()
    failed = pytest.main([
        str(Path(__file__).parent / "bench_search.py"),
        "-v", "-p", "no:cacheprovider", "--benchmark-quiet",
        f"--benchmark-json={raw}", f"--threads={options.threads}", *["--quick"] * options.quick,
    ])  # fmt: skip
    if not raw.exists():
        return int(failed) or 1
    summary = summarise(json.loads(raw.read_text()))
    raw.unlink()
    path = folder / "search.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{report(summary)}\n\n{path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
