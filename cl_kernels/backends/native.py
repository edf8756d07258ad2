"""The compiled libraries: C++ for CPUs (``_cpu.so``) and CUDA C++ (``_cuda.so``).

Loading a library registers its implementations of the ``.native`` overloads with torch; this
module only finds the libraries and says what they serve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = {"cpu": "_cpu.so", "cuda": "_cuda.so"}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def interruptible(compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute``, out of which a signal handler's own exception comes, such as KeyboardInterrupt.

    The library runs handlers during a call. If one raises, the call ends with a RuntimeError, as
    every C++ exception does, and the handler's exception is one of Python's pending calls.
    """

    def call(*args):
        try:
            return compute(*args)
        except RuntimeError:
            _run_pending_calls()
            raise

    return call


def _run_pending_calls() -> None:
    """Python does so whenever a function begins."""


def unavailable() -> str | None:
    return None  # it hangs on the device


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in _LIBRARIES:
        return f"the compiled kernels serve {', '.join(_LIBRARIES)} tensors, not {device.type}"
    if dtype not in _DTYPES:
        supported = ", ".join(str(d) for d in _DTYPES)
        return f"the compiled kernels serve {supported}, not {dtype}"
    failure = load_failure(_LIBRARIES[device.type])
    if failure is None and device.type == "cuda":
        return _unfit(device)
    return failure


def _unfit(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the CUDA kernels need compute capability 8.0, {device} has {major}.{minor}"
    return None
