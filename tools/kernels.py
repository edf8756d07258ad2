"""Compiles every GPU kernel for every architecture, without a GPU, and prints what came out.

Registers and shared memory are those of a thread and a block; spills are bytes of stack, loads and
stores. The last column is predicted by a static cost model (``tools.cost``) and not measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from benchmarks.machine import cores
from benchmarks.report import seconds_text, table
from tools import cuda
from tools.compiled import ARCHITECTURES, Compiled, Task, compile_all, tasks
from tools.cost import Tile
from tools.goals import CALLS, CANDIDATES, GOALS, cublas_seconds, parts, predicted_seconds

HEADER = ["", "sm", "registers", "stack, LDL/STL", "shared", "matrix instructions"]
PREDICTED = "predicted, not measured"


def _prediction(tile: Tile | None) -> str:
    return f"{tile.teraflops:.0f} TFLOP/s ({tile.limit})" if tile else ""


def kernel_table(compiled: Iterable[Compiled]) -> str:
    rows = []
    for c in compiled:
        found = ", ".join(f"{n} {name}" for name, n in c.matrix.items())
        spills = f"{c.resources.stack}, {c.spilled[0]}/{c.spilled[1]}"
        cells = [str(c.resources.registers), spills, f"{c.shared / 1024:.0f} KB", found]
        cells = ["", "", "", "failed"] if c.error else cells
        rows.append([c.label, str(c.arch), *cells, _prediction(c.tile)])
    return table([*HEADER, PREDICTED], rows)


def goal_table(compiled: dict[str, Compiled]) -> str:
    rows = []
    for goal in GOALS:
        known = parts(goal, compiled)
        if known is None:
            continue
        cublas = cublas_seconds(goal)
        seconds = predicted_seconds(goal, compiled)
        pieces = [
            f"{name.split()[-1] if goal.products else 'kernel'} "
            f"{seconds_text(tile.seconds(tiles))} ({_prediction(tile)})"
            for name, (tile, tiles) in known.items()
        ]
        pieces += [f"products {seconds_text(cublas)} (assumed)"] if cublas else []
        rows.append([
            goal.name, str(goal.case.rows), str(goal.case.width), seconds_text(goal.seconds),
            seconds_text(seconds), f"{seconds / goal.seconds:.2f}", "; ".join(pieces),
        ])  # fmt: skip
    return table(["", "rows", "D", "goal", PREDICTED, "of the goal", "made of"], rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.kernels", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--match", default="", help="only labels with this in them")
    parser.add_argument("--jobs", type=int, default=min(cores(), 8))
    return parser.parse_args()


def main() -> int:
    options = arguments()
    try:
        import triton

        print(f"Triton {triton.__version__}", flush=True)
    except ImportError:
        sys.exit("make kernels needs Triton, which is not installed here")
    wanted = [task for arch in options.arch for task in tasks(arch)]
    calls = [Task(90, call=name) for name in CALLS] if 90 in options.arch else []
    tried = [Task(90, call=name) for name in CANDIDATES] if calls else []
    everything = [*wanted, *calls, *tried]
    results = []
    for result in compile_all(everything, options.jobs):
        results.append(result)
        if len(results) % 50 == 0:
            print(f"{len(results)} of {len(everything)} compiled", file=sys.stderr)
    results, called = results[: len(wanted)], results[len(wanted) :]
    called, candidates = called[: len(calls)], called[len(calls) :]
    if cuda.sources() and cuda.nvcc() is None:
        print("nvcc not found: csrc/cuda is left out")
    results += [c for c in cuda.compile_sources(options.jobs) if c.arch in options.arch]
    results = [c for c in results if options.match in c.label]
    print(kernel_table(results))
    if called:
        print(f"\nForward and backward on an H100 SXM, bfloat16: {PREDICTED}\n")
        print(goal_table(dict(zip(CALLS, called, strict=True))))
        print("\nCandidates for the table, which may spill a little and which no GPU has judged\n")
        print(kernel_table(candidates))
    failed = [c for c in [*results, *called] if c.problems]
    for c in failed:
        print(f"\nsm_{c.arch} {c.label}: {'; '.join(c.problems)}")
    print(f"\n{len(results)} kernels, {len(failed)} with problems")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
