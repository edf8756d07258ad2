"""The compiled libraries' kernels, which torch calls by their ``.native`` overloads.

This module only says what they serve.
"""

from __future__ import annotations

import torch

from cl_kernels._libraries import LIBRARIES, load_failure

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    return None  # it hangs on the device


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in LIBRARIES:
        return f"the compiled kernels serve {', '.join(LIBRARIES)} tensors, not {device.type}"
    if dtype not in _DTYPES:
        supported = ", ".join(str(d) for d in _DTYPES)
        return f"the compiled kernels serve {supported}, not {dtype}"
    failure = load_failure(LIBRARIES[device.type])
    if failure is None and device.type == "cuda":
        return _unfit(device)
    return failure


_CPU_ONLY = {"query_bias", "key_bias", "query_guide", "key_guide", "ceiling"}


def refuses(request) -> str | None:
    unserved = [name for name in request.options if name in _CPU_ONLY]
    if request.device.type == "cuda" and unserved:
        return f"the CUDA kernels do not serve {', '.join(unserved)}"
    return None


def _unfit(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the CUDA kernels need compute capability 8.0, {device} has {major}.{minor}"
    return None
