"""The compiled libraries: C++ for CPUs (``_cpu.so``) and CUDA C++ (``_cuda.so``).

Loading one registers its implementations of our operations with torch.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

LIBRARIES = {"cpu": "_cpu.so", "cuda": "_cuda.so"}  # by the type of device that they serve
_PACKAGE = Path(__file__).resolve().parent


@cache
def load_failure(library: str) -> str | None:
    """Loads ``_cpu.so`` or ``_cuda.so`` once; why it could not be loaded, or None."""
    if library == "_cuda.so" and torch.version.hip:
        return "_cuda.so serves NVIDIA GPUs, this torch is for ROCm"
    path = _PACKAGE / library
    if not path.exists():
        return f"{library} is not built (pip install --no-build-isolation . compiles it)"
    if library == "_cuda.so" and not torch.version.cuda:
        return "_cuda.so needs a torch that is built with CUDA"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{library} does not load: {error}"
    return None
