"""Rows as the kernels take them, and gradients as callers take them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .tiles import INTERPRETED, kernel, rounded

BLOCK = 16
CHUNK = 256


@kernel
def prepare_rows_kernel(
    X, OUT, TAINT, R, WIDTH: tl.constexpr, D: tl.constexpr, CLEAN: tl.constexpr,
    UPCAST: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """OUT [R, D] = X [R, WIDTH] rounded and zero-padded.

    CLEAN: a row that is not finite becomes zero, and its TAINT NaN instead of zero.
    """
    first = tl.program_id(0) * BLOCK
    rows = first + tl.arange(0, BLOCK)
    start = rows.to(tl.int64)[:, None]
    taint = tl.zeros((BLOCK,), tl.float32)
    if CLEAN:
        for column in range(0, D, BLOCK_D):
            d = column + tl.arange(0, BLOCK_D)[None, :]
            mask = (rows < R)[:, None] & (d < WIDTH)
            x = tl.load(X + start * WIDTH + d, mask=mask, other=0.0)
            x = rounded(x.to(tl.float32), OUT.dtype.element_ty, UPCAST).to(tl.float32)
            taint += tl.sum(x - x, 1)  # NaN where x is not finite
        tl.store(TAINT + rows, taint, mask=rows < R)
    for column in range(0, D, BLOCK_D):
        d = column + tl.arange(0, BLOCK_D)[None, :]
        mask = (rows < R)[:, None] & (d < WIDTH)
        x = tl.load(X + start * WIDTH + d, mask=mask, other=0.0).to(tl.float32)
        x = tl.where((taint == 0.0)[:, None], x, 0.0)
        mask = (rows < R)[:, None] & (d < D)
        tl.store(OUT + start * D + d, rounded(x, OUT.dtype.element_ty, UPCAST), mask=mask)


@kernel
def finish_gradient_kernel(
    A, X, SCALE, GAIN, OUT, DOTS, R, parts, WIDTH: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """OUT = scale * sum of A's parts, DOTS[program] = <X, that sum>; A is [parts, R, D].

    GAIN: by which power of two the weights were scaled, if they were.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = rows.to(tl.int64)[:, None]
    gain = 1.0
    if GAIN is not None:
        gain = 1.0 / tl.load(GAIN)
    scale = tl.load(SCALE)
    dots = tl.zeros((BLOCK,), tl.float32)
    for column in range(0, WIDTH, BLOCK_D):
        d = column + tl.arange(0, BLOCK_D)[None, :]
        mask = (rows < R)[:, None] & (d < WIDTH)
        a = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for part in range(parts):
            offset = (tl.zeros((), tl.int64) + part) * R * D
            a += tl.load(A + offset + start * D + d, mask=mask, other=0.0)
        a *= gain
        a += tl.sum(a - a, 1)[:, None]  # one NaN makes a row of them (a chunk, for wide rows)
        tl.store(OUT + start * WIDTH + d, a * scale, mask=mask)
        x = tl.load(X + start * D + d, mask=mask, other=0.0).to(tl.float32)
        # Where the sum is exactly zero no kept pair touched the row, whatever it holds.
        dots += tl.sum(tl.where(a == 0.0, 0.0, a * x), 1)
    tl.store(DOTS + tl.program_id(0), tl.sum(dots, 0))


def _chunk(width: int) -> int:
    return min(CHUNK, triton.next_power_of_2(width))


def prepared_rows(x: Tensor, dtype: torch.dtype, width: int, clean: bool = False):
    """``x`` [R, D] rounded to ``dtype`` and padded to ``width``; a copy only where needed.

    With ``clean``, rows that are not finite become zero and are marked in the second result, a
    float32 vector of zeros and NaN; it is None otherwise.
    """
    R, D = x.shape
    if not clean and x.dtype == dtype and width == D:
        return x, None
    out = torch.empty(R, width, dtype=dtype, device=x.device)
    taint = torch.empty(R, dtype=torch.float32, device=x.device) if clean else None
    constexprs = {
        "WIDTH": D, "D": width, "CLEAN": clean, "UPCAST": INTERPRETED,
        "BLOCK": BLOCK, "BLOCK_D": _chunk(width),
    }  # fmt: skip
    launch(prepare_rows_kernel, triton.cdiv(R, BLOCK), x.device, (x, out, taint, R), constexprs)
    return out, taint


def finish_gradient(sums: Tensor, x: Tensor, scale: Tensor, gain: Tensor | None, D: int):
    """Gradient [R, D] = ``scale * sums``, and numbers whose sum is ``<x, sums>``.

    ``sums`` is [parts, R, width] and may become the gradient.
    """
    parts, R, width = sums.shape
    programs = triton.cdiv(R, BLOCK)
    out = sums[0] if parts == 1 and width == D else sums.new_empty(R, D)
    products = sums.new_empty(programs)
    launch(
        finish_gradient_kernel, programs, x.device,
        (sums, x, scale, gain, out, products, R, parts),
        {"WIDTH": D, "D": width, "BLOCK": BLOCK, "BLOCK_D": _chunk(width)},
    )  # fmt: skip
    return out, products
