"""The operations as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and above.

On the CPU they run under Triton's interpreter only, for tests (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch

from .gradients import (
    row_col_logsumexp_backward,
    row_logsumexp_backward,
    row_logsumexp_mean_key,
)
from .keys import settle
from .logsumexp import row_col_logsumexp, row_logsumexp
from .self_logsumexp import self_logsumexp, self_logsumexp_backward
from .tiles import INTERPRETED
from .topk import topk

__all__ = [
    "row_col_logsumexp",
    "row_col_logsumexp_backward",
    "row_logsumexp",
    "row_logsumexp_backward",
    "row_logsumexp_mean_key",
    "self_logsumexp",
    "self_logsumexp_backward",
    "topk",
    "unavailable",
    "unsupported",
]

settle()
DTYPES = torch.float32, torch.bfloat16, torch.float16


def unavailable() -> str | None:
    """Why no call can be served here, or None."""
    if INTERPRETED:
        return None
    if torch.version.hip:
        return "the Triton kernels are tuned and tested for NVIDIA GPUs, this torch is for ROCm"
    if torch.cuda.is_available():
        return None
    return "there is no CUDA GPU (TRITON_INTERPRET=1 interprets the kernels on the CPU, for tests)"


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why tensors like these cannot be served, or None."""
    if dtype not in DTYPES:
        return f"the Triton kernels serve float32, bfloat16 and float16, not {dtype}"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the Triton kernels serve cuda tensors, not {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the Triton kernels need compute capability 8.0, {device} has {major}.{minor}"
    return None
