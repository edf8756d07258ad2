"""Which GPU, and with what, the numbers were made."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from typing import Any

import torch

import cl_kernels
from benchmarks.gpu.bundle import installed
from benchmarks.machine import slug


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else "unknown"


def cuda_arch() -> str:
    """This GPU's architecture as CMake names it: 80-real, 90a-real, 100a-real."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}{'a' if major >= 9 else ''}-real"


def describe(device: str) -> dict[str, Any]:
    on_gpu = device == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else device
    about: dict[str, Any] = {"kind": f"gpu-{slug(name)}", "device": name}
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        about["memory_bytes"] = properties.total_memory
        about["processors"] = properties.multi_processor_count
        about["arch"] = cuda_arch()
        about["driver"] = driver()
    return about | {
        "versions": {
            "cl_kernels": cl_kernels.__version__,
            "torch": torch.__version__,
            "triton": installed("triton"),
            "cuda": torch.version.cuda or "none",
            "python": platform.python_version(),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
