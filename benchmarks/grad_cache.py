"""One training step on a whole batch, and with ``GradCache``: peak memory and time.

``python -m benchmarks.grad_cache`` trains a small Transformer on pairs of token sequences with
InfoNCE, each batch in a fresh process, prints a table and writes ``grad_cache.json``. The peak is
what resident memory gains during the step beyond the parameters, their gradients and the inputs
(see ``benchmarks.memory``).
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.memory import PeakMeter
from benchmarks.neighbours import DISTURBED, Neighbours
from benchmarks.report import RESULTS, table
from cl_kernels import InfoNCELoss
from cl_kernels.grad_cache import GradCache

TOKENS, VOCABULARY, WIDTH, LAYERS = 32, 1000, 128, 2
WHOLE = (256, 512, 1024)  # about 2 MB of activations a pair
CACHED = (256, 512, 1024, 4096, 16384)
QUICK = (64, 256)
CHUNK = 32


class TextEncoder(nn.Module):
    """Token ids [n, TOKENS] -> embeddings [n, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.embedding(ids)).mean(1)


def measure(batch: int, chunk: int | None, threads: int, repeats: int = 1) -> dict[str, Any]:
    """Peak and median seconds of a step in this process, which should be a fresh one."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder, loss = TextEncoder(), InfoNCELoss(0.05)

    def step(query: Tensor, key: Tensor) -> None:
        if chunk is None:
            loss(encoder(query), encoder(key)).backward()
        else:
            GradCache(encoder, loss, chunk_size=chunk).step(query, key)

    step(*torch.randint(VOCABULARY, (2, 2, TOKENS)))  # libraries loaded, gradients allocated
    inputs = torch.randint(VOCABULARY, (2, batch, TOKENS))
    meter, neighbours, seconds = PeakMeter(), Neighbours(), []
    for _ in range(repeats):
        start = perf_counter()
        step(*inputs)
        seconds.append(perf_counter() - start)
    return {
        "batch": batch,
        "chunk": chunk,
        "peak_extra_bytes": meter.extra_bytes(),
        "seconds": sorted(seconds)[repeats // 2],
        "neighbours": neighbours.cores(),
    }


def measure_fresh(batch: int, chunk: int | None, threads: int, repeats: int = 1) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, batch, chunk, threads, repeats).result()


def report(results: list[dict[str, Any]]) -> str:
    """A row for each batch, whole beside cached."""
    found = {(r["batch"], r["chunk"] is not None): r for r in results}

    def cells(batch: int, cached: bool) -> list[str]:
        result = found.get((batch, cached))
        if result is None:
            return ["", ""]
        return [f"{result['peak_extra_bytes'] / 1e6:.0f} MB", f"{result['seconds']:.2f} s"]

    header = ["pairs", "whole batch: peak", "a step", "GradCache: peak", "a step"]
    batches = sorted({batch for batch, _ in found})
    return table(header, [[f"{b}", *cells(b, False), *cells(b, True)] for b in batches])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grad_cache", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"batches of {QUICK} only")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write under")
    options = parser.parse_args()

    cases = [(batch, None) for batch in (QUICK if options.quick else WHOLE)]
    cases += [(batch, CHUNK) for batch in (QUICK if options.quick else CACHED)]
    results = []
    for batch, chunk in cases:
        repeats = 3 if batch <= WHOLE[-1] else 1
        results.append(measure_fresh(batch, chunk, options.threads, repeats))

    torch.set_num_threads(options.threads)
    about = machine.describe()
    encoder = {"tokens": TOKENS, "width": WIDTH, "layers": LAYERS}
    summary = {"machine": about, "encoder": encoder, "results": results}
    folder = options.results / about["kind"] / ("partial" if options.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "grad_cache.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{about['device']}, {about['threads']} threads; commit {about['commit']}")
    print(f"Chunks of {CHUNK}; {TOKENS} tokens, {LAYERS} layers of width {WIDTH}")
    print(f"\n{report(results)}\n")
    if (busy := max(r["neighbours"] for r in results)) > DISTURBED:
        print(f"Not a quiet machine: other processes kept up to {busy:g} cores busy.\n")
    print(path)


if __name__ == "__main__":
    main()
