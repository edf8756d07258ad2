"""Measures configurations on this machine's GPU and prints the line of the table for the fastest.

    python -m tools.autotune --family weights --width 768 --rows 65536

Nothing runs it by itself: a line is added to ``table.py`` by hand, once it is believed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import triton.testing

from cl_kernels.backends import triton as kernels
from cl_kernels.backends.triton import configs
from cl_kernels.backends.triton.configs import Config, configured_as
from cl_kernels.calls import Call
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.table import STATISTICS

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
        return partial(kernels.topk, x, y, 10, None, None, None, None, Pairs())
    sides = {"row_forward": "row", "mean_key": "row"}.get(family, "row_col")
    statistic = STATISTICS[f"{'self' if family in SELF_FAMILIES else sides}_logsumexp"]
    scale, call = torch.tensor(14.0, device="cuda"), Call(Pairs(), dtype, None)
    arguments = x, None if statistic.of_one else y, scale, call
    if family == "mean_key":
        return partial(kernels.weighted_key, statistic, *arguments)
    if family.endswith("forward"):
        return partial(kernels.forward, statistic, *arguments)
    values = kernels.forward(statistic, *arguments)
    grads = [torch.full((rows,), 1 / rows, device="cuda") for _ in values]
    return partial(kernels.backward, statistic, grads, values, *arguments, (True, True))


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
                    median: Any = triton.testing.do_bench(call, return_mode="median")
            except RuntimeError:  # it does not fit
                continue
            times[config] = median
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
