"""A step of MoCo's loss with ``Queue``, beside MoCo's own code in eager PyTorch.

``python -m benchmarks.queue [--quick]``: forward, push and backward of 256 queries, in turn with
MoCo's product with its queue, cross-entropy and enqueueing. Prints a table and writes
``queue.json`` beside the other results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine
from benchmarks.neighbours import DISTURBED, Neighbours
from benchmarks.report import RESULTS, machine_line, seconds_text, table
from benchmarks.timing import LEAST_PAIRS, calibrate, compare, count_pairs, seconds_per_call
from cl_kernels import info_nce
from cl_kernels.memory import Queue

BATCH, WIDTH, TEMPERATURE = 256, 128, 0.07
KEYS, QUICK = (4096, 16_384, 65_536), (4096,)


def ours(query: Tensor, key: Tensor, size: int) -> Callable[[], None]:
    queue = Queue(size, WIDTH)
    queue.push(F.normalize(torch.randn(size, WIDTH), dim=1))

    def step() -> None:
        query.grad = None
        loss = info_nce(query, key, queue.keys, temperature=TEMPERATURE)
        queue.push(key)
        loss.backward()

    return step


def mocos(query: Tensor, key: Tensor, size: int) -> Callable[[], None]:
    """He et al., "Momentum Contrast" (2020), algorithm 1, as the authors' code has it."""
    queue, place = F.normalize(torch.randn(WIDTH, size), dim=0), 0

    def step() -> None:
        nonlocal place
        query.grad = None
        q, k = F.normalize(query, dim=1), F.normalize(key, dim=1)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", q, queue.clone().detach())
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
        queue[:, place : place + BATCH] = k.T
        place = (place + BATCH) % size
        loss.backward()

    return step


def measure(size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    query = torch.randn(BATCH, WIDTH, requires_grad=True)
    key = torch.randn(BATCH, WIDTH)
    steps = [make(query, key, size) for make in (ours, mocos)]
    loops, seconds = zip(*map(calibrate, steps), strict=True)
    pairs = count_pairs(sum(n * s for n, s in zip(loops, seconds, strict=True)), LEAST_PAIRS)
    neighbours = Neighbours()
    samples = [
        [seconds_per_call(step, n) for step, n in zip(steps, loops, strict=True)]
        for _ in range(pairs)
    ]
    found = compare(*zip(*samples, strict=True))
    return {"keys": size, **found, "neighbours": neighbours.cores()}


def report(results: list[dict[str, Any]]) -> str:
    header = ["keys", "ours", "MoCo's code", "ours / MoCo's (quartiles)"]
    return table(
        header,
        [
            [
                f"{r['keys']:,}",
                seconds_text(r["ours_seconds"]),
                seconds_text(r["rival_seconds"]),
                f"{r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})",
            ]
            for r in results
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} keys only")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    results = [measure(size) for size in (QUICK if options.quick else KEYS)]
    about = machine.describe()
    folder = options.results / about["kind"] / ("partial" if options.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "queue.json"
    path.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    print(machine_line(about), report(results), f"written to {path}", sep="\n\n")
    if any(r["neighbours"] > DISTURBED for r in results):
        print("Not a quiet machine: other processes kept cores busy.")


if __name__ == "__main__":
    main()
