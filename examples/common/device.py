"""Where a run computes, in which precision, and with what it was made."""

import os
import platform
from typing import Any

import torch


def pick_device(name: str) -> torch.device:
    """A device by name; ``auto`` is a GPU where there is one."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown: {error}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {name!r}")
    if device.type == "cuda" and not has_gpu:
        raise ValueError(f"device {name!r} was asked for, and torch sees no GPU")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """``auto`` is bfloat16 on a GPU that has it, else float32."""
    if name != "auto":
        return name
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if on_gpu else "float32"


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, threads and versions, for a report."""
    on_gpu = device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
