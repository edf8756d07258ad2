"""Which floating-point types numbers are held in."""

from __future__ import annotations

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = {"mps"}


def accumulator(x: Tensor) -> torch.dtype:
    """What sums and results for embeddings like x are held in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64: Apple's and some of Intel's GPUs."""
    if device.type in _WITHOUT_FLOAT64:
        return torch.float32
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64
