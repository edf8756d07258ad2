"""Measures configurations on this machine's GPU and prints the line of the table for the fastest.

    python -m cl_kernels.backends.triton.autotune --family weights --width 768 --rows 65536

Nothing runs it by itself: a line is added to ``table.py`` by hand, once it is believed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
import triton.testing

from . import configs
from .gradients import row_col_logsumexp_backward, row_logsumexp_mean_key
from .logsumexp import row_col_logsumexp, row_logsumexp
from .self_logsumexp import self_logsumexp, self_logsumexp_backward
from .table import Config
from .topk import topk

SELF_FAMILIES = ("self_forward", "self_backward")
FUSED_FAMILIES = ("mean_key", "backward", "backward_both", "self_backward")
FAMILIES = ("row_forward", "row_col_forward", "weights", "self_forward", "topk", *FUSED_FAMILIES)


def space(family: str, width: int) -> Iterator[Config]:
    """Configurations worth compiling: their accumulators fit the registers."""
    fused = family in FUSED_FAMILIES
    chunks = (0,) if fused or width <= 256 else (32, 64, 128)
    shapes = product((64, 128, 256), (32, 64, 128, 256), chunks, (4, 8), (2, 3, 4))
    for config in map(Config._make, shapes):
        if family in (*SELF_FAMILIES, "backward") and config.BLOCK_N > config.BLOCK_M:
            continue
        elements = config.BLOCK_M * config.BLOCK_N
        if fused:
            elements += config.BLOCK_M * width
        if family in ("backward_both", "self_backward"):
            elements += config.BLOCK_N * width
        if elements <= 200 * 32 * config.num_warps:
            yield config


def operation(family: str, rows: int, width: int, dtype: torch.dtype) -> Callable[[], object]:
    """A call that spends its time in the family's kernels."""
    x = torch.nn.functional.normalize(torch.randn(rows, width, device="cuda"), dim=1).to(dtype)
    y = x[torch.randperm(rows, device="cuda")]
    if family == "topk":
        return partial(topk, x, y, 10, None, None, [], [], [], None, None, None, None)
    scale = torch.tensor(14.0, device="cuda")
    options = [], [], [], None, None, None, None, dtype, None
    if family == "row_forward":
        return partial(row_logsumexp, x, y, scale, *options)
    if family == "row_col_forward":
        return partial(row_col_logsumexp, x, y, scale, *options)
    if family == "mean_key":
        return partial(row_logsumexp_mean_key, x, y, scale, *options)
    if family == "self_forward":
        return partial(self_logsumexp, x, scale, *options)
    grad = torch.full((rows,), 1 / rows, device="cuda")
    if family == "self_backward":
        lse = self_logsumexp(x, scale, *options)
        return partial(self_logsumexp_backward, grad, lse, x, scale, *options)
    row, col = row_col_logsumexp(x, y, scale, *options)
    return partial(
        row_col_logsumexp_backward, grad, grad, row, col, x, y, scale, *options, True, True
    )


@contextmanager
def configured_as(lines: Mapping[str, Config]) -> Iterator[None]:
    """Kernels of these families with one configuration each, whatever the table says."""
    original = configs.candidates

    def candidates(arch: int, family: str, kind: str, width: int) -> list[Config]:
        config = lines.get(family.removesuffix("_masked"))
        return [config] if config else original(arch, family, kind, width)

    configs.candidates = candidates
    try:
        yield
    finally:
        configs.candidates = original


def tune(family: str, rows: int, width: int, dtype: torch.dtype) -> str:
    """The table's line for the fastest configuration, with its time and the time before."""
    arch, kind = configs.architecture(torch.device("cuda")), configs.kind(dtype)
    padded = configs.padded_width(width)
    call = operation(family, rows, width, dtype)
    default = configs.configured(arch, family, kind, padded)
    deterministic = torch.are_deterministic_algorithms_enabled()
    times: dict[Config, float] = {}
    torch.use_deterministic_algorithms(family == "backward")
    try:
        for config in dict.fromkeys((default, *space(family, padded))):
            try:
                with configured_as({family: config}):
                    times[config] = triton.testing.do_bench(call, return_mode="median")
            except RuntimeError:  # it does not fit
                continue
            print(f"# {times[config]:9.3f} ms {config}", flush=True)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    best = min(times, key=times.__getitem__)
    key = configs.line(arch, family, kind, padded)
    before = f"{times[default]:.3f} ms" if default in times else "nothing that fits"
    return f"    {key}: {best},  # {times[best]:.3f} ms at {rows} x {width}, before {before}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="weights")
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU to measure on")
    dtype = getattr(torch, arguments.dtype)
    print(tune(arguments.family, arguments.rows, arguments.width, dtype))


if __name__ == "__main__":
    main()
