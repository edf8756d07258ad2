"""Launching a kernel: in how many programs, and with the first configuration that fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import triton

from . import configs
from .configs import Config


def launch(
    kernel, programs: int, device: torch.device, args, constexprs,
    num_warps: int = 4, num_stages: int = 2, maxnreg: int | None = None,
):  # fmt: skip
    if programs == 0:
        return
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        kernel[(programs,)](
            *args, **constexprs, num_warps=num_warps, num_stages=num_stages, maxnreg=maxnreg,
            enable_fp_fusion=True,
        )  # fmt: skip


_fitting: dict[tuple, int] = {}


def first_that_fits(
    device: torch.device, arch: int, family: str, kind: str, width: int, narrow: bool,
    run: Callable[[Config], Any],
):  # fmt: skip
    """``run`` with the table's configuration, or with the first after it that fits the device."""
    candidates = configs.candidates(arch, family, kind, width)
    if narrow:
        candidates = [configs.narrowed(family, kind, config) for config in candidates]
    case = device, family, kind, width, narrow  # devices of one architecture differ in memory
    failures = []
    for i in range(_fitting.get(case, 0), len(candidates)):
        try:
            result = run(candidates[i])
        except triton.OutOfResources as error:
            failures.append(f"{candidates[i]} needs {error.required} of {error.limit} {error.name}")
            _fitting[case] = i + 1
        else:
            return result
    _fitting.pop(case, None)
    raise RuntimeError(
        f"no {family} configuration fits sm_{arch} for {kind} embeddings of width {width}: "
        + "; ".join(failures)
    )
