"""The compiled libraries: C++ for CPUs (``_cpu.so``) and CUDA C++ (``_cuda.so``).

Loading a library registers its implementations of the ``.native`` overloads with torch; this
module only finds the libraries and says what they serve.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
_DTYPES = {
    "cpu": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
}


@cache
def load_failure(library: str) -> str | None:
    """Loads ``_cpu.so`` or ``_cuda.so`` once; why it could not be loaded, or None."""
    path = _PACKAGE / library
    if not path.exists():
        return f"{library} is not built (pip install --no-build-isolation . compiles it)"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{library} does not load: {error}"
    return None


def unavailable() -> str | None:
    return load_failure("_cpu.so")


def unsupported(device_type: str, dtype: torch.dtype) -> str | None:
    if device_type not in _DTYPES:
        return f"the compiled kernels serve {', '.join(_DTYPES)} tensors, not {device_type}"
    if dtype not in _DTYPES[device_type]:
        supported = ", ".join(str(d) for d in _DTYPES[device_type])
        return f"the compiled kernels serve {supported}, not {dtype}"
    return None
