"""Which floating-point types a device has."""

from __future__ import annotations

import torch

_WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64: Apple's and some of Intel's GPUs."""
    if device.type in _WITHOUT_FLOAT64:
        return torch.float32
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64
