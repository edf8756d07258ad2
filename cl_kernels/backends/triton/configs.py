"""Which tiles a kernel works on: a table by architecture, kernel family, precision and width."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

SLAB_BYTES = 256 * 2**20  # of the weights of a wide problem that exist at a time
PARTIAL_BYTES = 256 * 2**20  # of partial column sums that exist at a time
MAX_WIDTH = 4096
WIDE = MAX_WIDTH  # the table's last column of widths: read in chunks


class Config(NamedTuple):
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int  # 0: the rows' whole width in one tile
    num_warps: int
    num_stages: int


_ANY = Config(32, 32, 0, 4, 2)

TABLE: dict[tuple[int, str, str, int], Config] = {}


def kind(compute_dtype: torch.dtype) -> str:
    """How tiles are multiplied: "half", "tf32" or "ieee"."""
    if compute_dtype in (torch.float16, torch.bfloat16):
        return "half"
    if compute_dtype == torch.float32:
        # As torch's own products on CUDA: "high" and "medium" both use TF32.
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    raise ValueError(
        f"compute_dtype: the Triton kernels multiply float32, bfloat16 or float16, "
        f"not {compute_dtype}"
    )


def precision(kind: str) -> str:
    return "ieee" if kind == "ieee" else "tf32"


def architecture(device: torch.device) -> int:
    """The column of the table that serves a device: 80, 90 or 100."""
    if device.type != "cuda":
        return 90
    major, _ = torch.cuda.get_device_capability(device)
    # Consumer Blackwell (12.x) has the matrix instructions of sm_80.
    return {9: 90, 10: 100, 11: 100}.get(major, 80)


def padded_width(D: int) -> int:
    """The width that kernels take rows of D columns in."""
    return max(16, triton.next_power_of_2(D)) if D <= 256 else triton.cdiv(D, 64) * 64


def knee(arch: int, kind: str) -> int:
    """The largest width whose gradients the fused kernels make; wider ones go through slabs."""
    return {"half": 256, "tf32": 128, "ieee": 64}[kind]


def candidates(arch: int, family: str, kind: str, width: int) -> list[Config]:
    """What to try, in order: the table's configuration, then ever smaller ones."""
    widths = [w for a, f, k, w in TABLE if (a, f, k) == (arch, family, kind) and w >= width]
    best = TABLE[arch, family, kind, min(widths)] if widths else _ANY
    return [best]
