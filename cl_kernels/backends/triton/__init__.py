"""The operations as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and above.

On the CPU they run under Triton's interpreter only, for tests (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch

from cl_kernels._libraries import load_failure

from .configs import WIDE
from .folds import FOLDS
from .keys import settle
from .pairs import BOUNDS
from .search import topk
from .statistics import backward, forward, weighted_key
from .tiles import INTERPRETED

__all__ = [
    "backward",
    "forward",
    "refuses",
    "topk",
    "unavailable",
    "unsupported",
    "weighted_key",
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
    # Where it loads, torch calls its selection among a search's survivors.
    load_failure("_cuda.so")
    return None


def refuses(request) -> str | None:
    """Why a call cannot be served, or None."""
    if request.compute_dtype not in DTYPES:
        return f"the Triton kernels do not multiply in {request.compute_dtype}"
    if request.width > WIDE and request.operation != "topk":
        return f"the Triton kernels take rows of up to {WIDE} columns, got {request.width}"
    if request.operation != "topk" and not request.operation.endswith(tuple(FOLDS)):
        return f"the Triton kernels do not serve {request.operation}"
    missing = [name for name in request.options if name not in BOUNDS]
    if request.operation == "topk" and missing:
        return f"the Triton kernels' searches do not take {missing[0]}"
    return None
