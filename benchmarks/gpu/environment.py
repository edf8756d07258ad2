"""What this machine is and brings along: versions, the GPU, caches and libraries."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.contestants import left_out
from benchmarks.gpu.device import device, rehearsed
from benchmarks.gpu.machine import describe
from cl_kernels._libraries import load_failure

CASES = "machine", "_cuda.so", "a kernel"


def work(case: str) -> dict[str, Any]:
    if case == "machine":
        about = describe("rehearsal" if rehearsed() else "cuda")
        return about | {"rivals not installed": left_out()}
    if case == "_cuda.so":
        failure = load_failure("_cuda.so")
        return {"error": failure} if failure and not rehearsed() else {"loads": failure or True}
    import cl_kernels

    x = torch.randn(256, 64, device=device())
    lse = cl_kernels.row_logsumexp(x, x, 1.0, backend="triton")
    return {"sum": float(lse.sum())}
