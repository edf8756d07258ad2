"""Builds, tests, sanitizes and measures on this machine's GPU, unattended, within nine minutes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.gpu import stages
from benchmarks.gpu.cases import SUITES
from benchmarks.gpu.machine import cuda_arch, describe
from benchmarks.gpu.report import report
from benchmarks.report import RESULTS, table

SECONDS = 525.0  # in all; nine minutes less what starting and ending take


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    parser.add_argument("--commit", default="", help="of the sources, where git cannot say it")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything together")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny sizes")
    return parser.parse_args()


def main() -> int:
    start = perf_counter()
    options = arguments()
    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("gpu-check: PyTorch sees no CUDA GPU on this machine")
    about = describe("cpu" if options.dry_run else "cuda", options.commit)
    folder: Path = (options.results / about["kind"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for suite in SUITES:  # none of an earlier run must look like this one's
        (folder / f"{suite}.json").unlink(missing_ok=True)
    if options.dry_run:
        wanted = stages.dry_stages(folder, options.commit)
    else:
        wanted = stages.stages(cuda_arch(), folder, options.commit)
    outcomes = []
    for stage in wanted:
        print(f"{perf_counter() - start:5.0f} s  {stage.name} ...", flush=True)
        outcome = stages.run(stage, folder, options.seconds - (perf_counter() - start))
        outcomes.append(outcome)
        if not outcome.good and outcome.log:
            print(f"{stage.name}: {outcome.result}; its log ends:")
            print(stages.ending(folder / outcome.log), flush=True)
        document = {"machine": about, "stages": [asdict(o) for o in outcomes]}
        (folder / "check.json").write_text(json.dumps(document, indent=1) + "\n")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"\n{about['device']}; {versions}; commit {about['commit']}; {folder}\n")
    print(table(["stage", "result", "seconds"], (_row(outcome) for outcome in outcomes)))
    print(f"\n{report(folder)}")
    return int(not all(outcome.good for outcome in outcomes))


def _row(outcome: stages.Outcome) -> list[str]:
    return [outcome.name, outcome.result, f"{outcome.seconds:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
