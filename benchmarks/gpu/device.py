"""Where a worker's tensors live: on the GPU or, in a rehearsal, where nothing is computed."""

from __future__ import annotations

import torch

from cl_kernels.backends import triton as kernels


def rehearsed() -> bool:
    """Whether Triton was told to launch nothing (``benchmarks.gpu.offline``)."""
    return not torch.cuda.is_available() and kernels.unavailable() is None


def device(large: bool = False) -> str:
    """``large``: of tensors that a rehearsal must not hold."""
    if not rehearsed():
        return "cuda"
    return "meta" if large else "cpu"


class Broken(RuntimeError):
    """As if this process's CUDA context were lost."""


def broken_gpu() -> bool:
    """Whether an error has ended this process's CUDA context, and so all that comes after it."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
