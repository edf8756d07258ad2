"""Which tiles a kernel works on: the table, and what follows its lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import triton

from .table import TABLE, WIDE, Config

__all__ = ["TABLE", "WIDE", "Config"]

# The largest width whose gradients the fused kernels make; wider ones go through slabs.
# By compiling: beyond these, tiles that do not spill are too small to keep the products busy.
KNEE = {"half": 128, "tf32": 128, "ieee": 64}
MEAN_KEY_KNEE = {"half": 256, "tf32": 128, "ieee": 64}

# A limit that the assembler has anyway; without one it spills to make room for more programs.
MOST_REGISTERS = 255

_tried: dict[str, Config] = {}  # by family: what a measurement asks for in place of the table


def kind(compute_dtype: torch.dtype) -> str:
    """How tiles are multiplied: "half", "tf32" or "ieee"."""
    if compute_dtype in (torch.float16, torch.bfloat16):
        return "half"
    # As torch's own products on CUDA, whichever of its settings was made: torch's getter for the
    # older one raises once a newer one was used.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def precision(kind: str) -> str:
    return "ieee" if kind == "ieee" else "tf32"


def architecture(device: torch.device) -> int:
    """The part of the table that serves a device: 80, 90 or 100."""
    if device.type != "cuda":
        return 90
    major, _ = torch.cuda.get_device_capability(device)
    # Consumer Blackwell (12.x) has the matrix instructions of sm_80.
    return {9: 90, 10: 100, 11: 100}.get(major, 80)


def padded_width(D: int) -> int:
    """The width that kernels take rows of D columns in."""
    return max(16, triton.next_power_of_2(D)) if D <= 256 else triton.cdiv(D, 64) * 64


def line(arch: int, family: str, kind: str, width: int) -> tuple[int, str, str, int]:
    """The table's line for a width: that of the least width which is not below it."""
    widths = [w for a, f, k, w in TABLE if (a, f, k) == (arch, family, kind) and w >= width]
    if not widths:
        raise LookupError(f"sm_{arch}: no {family} configuration for {kind} rows of width {width}")
    return arch, family, kind, min(widths)


def configured(arch: int, family: str, kind: str, width: int) -> Config:
    return TABLE[line(arch, family, kind, width)]


def narrows(plain: bool, is_sum: bool) -> bool:
    """Whether calls take more registers than the table's tiles leave: those of sums, and those
    with options beside filters."""
    return is_sum or not plain


def register_limit(precision: str, narrow: bool) -> int | None:
    """For the assembler, where not its own."""
    return MOST_REGISTERS if narrow and precision == "ieee" else None


def narrowed(family: str, kind: str, config: Config) -> Config:
    """A configuration for such calls. Found by compiling."""
    rows, cols = config.BLOCK_M // 2, max(config.BLOCK_N // 2, 16)
    if kind == "ieee":
        return config._replace(BLOCK_M=rows, BLOCK_N=cols, num_warps=4)
    if kind == "tf32":  # the matrix instructions of sm_90 take 64 rows
        return config._replace(BLOCK_M=max(rows, 64), BLOCK_N=cols)
    if config.BLOCK_M > config.BLOCK_N and not family.endswith("forward"):
        return config._replace(BLOCK_M=rows, num_warps=8)  # weights, transposed, are multiplied too
    return config._replace(BLOCK_N=cols, num_warps=8)


def _smaller(config: Config) -> Config | None:
    """A configuration that needs less shared memory; blocks of columns divide those of rows."""
    BLOCK_M, BLOCK_N, _, _, num_stages = config
    if num_stages > 1:
        return config._replace(num_stages=num_stages - 1)
    if BLOCK_N > 32:
        return config._replace(BLOCK_N=BLOCK_N // 2)
    if BLOCK_M > 32:
        return config._replace(BLOCK_M=BLOCK_M // 2, num_warps=4)
    if BLOCK_N > 16:
        return config._replace(BLOCK_N=16)
    return None


def candidates(arch: int, family: str, kind: str, width: int) -> list[Config]:
    """What to try, in order: the table's configuration, then ever smaller ones."""
    tried = _tried.get(family.removesuffix("_masked"))
    if tried is not None:
        return [tried]
    config: Config | None = configured(arch, family, kind, width)
    found = []
    while config is not None:
        found.append(config)
        config = _smaller(config)
    return found


def family_for(arch: int, family: str, kind: str, masked: bool) -> str:
    """The family, or its variant for calls that mask tiles where the table has one."""
    special = family + "_masked"
    if masked and any((a, f, k) == (arch, special, kind) for a, f, k, _ in TABLE):
        return special
    return family


@contextmanager
def configured_as(lines: Mapping[str, Config]) -> Iterator[None]:
    """Kernels of these families with one configuration each, whatever the table says."""
    before = dict(_tried)
    _tried.update(lines)
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)
