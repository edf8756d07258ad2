"""A loss of two processes' batches, beside one process that has all of it.

``python -m benchmarks.ranks [--quick]``: forward and backward of ``clip``, each process on one
thread, over gloo on this machine: what ``gather="all"`` and ``"ring"`` take, and what asking for
them costs a group of one. Prints a table and writes ``ranks.json`` beside the other results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks import machine
from benchmarks.neighbours import DISTURBED, Neighbours
from benchmarks.report import RESULTS, machine_line, seconds_text, table
from benchmarks.timing import calibrate, compare, seconds_per_call
from cl_kernels import clip

RANKS, WIDTH, REPEATS = 2, 256, 15
ROWS, QUICK = (512, 2048, 8192), (512,)


def step(rows: int, gather: Any = None):
    images, texts = (torch.randn(rows, WIDTH, requires_grad=True) for _ in range(2))
    scale = torch.tensor(20.0, requires_grad=True)

    def run() -> None:
        images.grad = texts.grad = scale.grad = None
        clip(images, texts, scale, normalize=True, gather=gather).backward()

    return run


def _rank(rank: int, folder: str, rows: int) -> None:
    """Medians of this rank's seconds: all of it alone, then its half in both ways."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    found = {}
    for name, run in (
        ("all", step(rows // RANKS, "all")),
        ("ring", step(rows // RANKS, "ring")),
    ):
        run()
        seconds = []
        for _ in range(REPEATS):
            dist.barrier()
            start = perf_counter()
            run()
            seconds.append(perf_counter() - start)
        found[name] = statistics.median(seconds)
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(rows: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    neighbours = Neighbours()
    plain, asking = step(rows), step(rows, "all")  # no group: the plain call
    loops, _ = calibrate(plain)
    samples = [[seconds_per_call(f, loops) for f in (asking, plain)] for _ in range(REPEATS)]
    found = compare(*zip(*samples, strict=True))
    alone = neighbours.cores()
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (folder, rows), nprocs=RANKS)
        over = json.loads(Path(folder, "found.json").read_text())
    return {
        "rows": rows,
        "one": found["rival_seconds"],
        "asking_alone": found["ratio"],
        **over,
        "neighbours": alone,
    }


def report(results: list[dict[str, Any]]) -> str:
    header = [
        "rows in all",
        "one process",
        'two, "all"',
        'two, "ring"',
        'alone with gather="all" / without',
    ]
    return table(
        header,
        [
            [
                f"{r['rows']:,}",
                *(seconds_text(r[name]) for name in ("one", "all", "ring")),
                f"{r['asking_alone']:.3f}",
            ]
            for r in results
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rows only")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    options = parser.parse_args()

    results = [measure(rows) for rows in (QUICK if options.quick else ROWS)]
    about = machine.describe()
    folder = options.results / about["kind"] / ("partial" if options.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ranks.json"
    path.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    print(machine_line(about), report(results), f"written to {path}", sep="\n\n")
    if any(r["neighbours"] > DISTURBED for r in results):
        print("Not a quiet machine: other processes kept cores busy.")


if __name__ == "__main__":
    main()
