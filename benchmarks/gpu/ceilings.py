"""What this GPU can do at most: the numbers that the static cost model assumes.

Products are of random unit rows in bfloat16, as the losses' are: on zeros a GPU is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.device import device, rehearsed
from benchmarks.gpu.measure import median_seconds, settings

SECONDS = 0.3  # of each


def _random(rows: int, width: int) -> torch.Tensor:
    x = torch.randn(rows, width, device=device(large=True), dtype=torch.float32)
    return torch.nn.functional.normalize(x).to(torch.bfloat16)


def product(M: int, N: int, D: int) -> dict[str, Any]:
    a, b = _random(M, D), _random(N, D)
    out = a.new_empty(M, N)
    return rated(lambda: torch.mm(a, b.T, out=out), 2.0 * M * N * D)


def slab_product(rows: int, cols: int, width: int, transposed: bool = False) -> dict[str, Any]:
    """A slab of weights times embeddings, added to float32 sums: what is left to cuBLAS."""
    weights, x = _random(rows, cols), _random(rows if transposed else cols, width)
    weights = weights.T if transposed else weights
    out = torch.zeros(len(weights), width, device=x.device, dtype=torch.float32)

    def step() -> None:
        if rehearsed():
            return
        torch.addmm(out, weights, x, out_dtype=torch.float32, out=out)

    return rated(step, 2.0 * rows * cols * width)


def copy(size: int) -> dict[str, Any]:
    """Bytes read and written; small ones stay in the L2 cache."""
    x = torch.empty(size, device=device(large=True), dtype=torch.uint8)
    y = torch.empty_like(x)
    return rated(lambda: y.copy_(x), 2.0 * size, "bytes")


def reading(size: int) -> dict[str, Any]:
    """Bytes of one array summed over and over: with an array in L2, what L2 gives."""
    x = torch.ones(size // 4, device=device(large=True), dtype=torch.float32)
    return rated(lambda: x.sum(), float(size), "bytes")


def rated(step: Callable[[], Any], amount: float, of: str = "flop") -> dict[str, Any]:
    step()
    if rehearsed():
        return {of: amount}
    step()
    found = median_seconds(step, SECONDS)
    return {**found, of: amount, f"{of} a second": amount / found["seconds"]}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "product 8192^3": lambda: product(8192, 8192, 8192),
    "copy 2 GB": lambda: copy(2 * 10**9),
    "copy 8 MB": lambda: copy(8 * 10**6),
    "read 32 MB": lambda: reading(32 * 10**6),
    **{
        f"slab {rows} x {cols} x {D}{', transposed' * t}": (
            lambda rows=rows, cols=cols, D=D, t=t: slab_product(rows, cols, D, t)
        )
        for rows, cols in ((11008, 11008), (8448, 8448), (16896, 7936))
        for D in (512, 768, 1024)
        for t in (False, True)
    },
}


def work(case: str) -> dict[str, Any]:
    with settings(deterministic=False):
        return CASES[case]()
