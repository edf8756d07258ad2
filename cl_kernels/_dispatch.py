"""Which backend serves a call: the argument, else the context, else the environment, else the
first of the device's list that can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from cl_kernels._ops import BACKENDS, backend_module

ENVIRONMENT_VARIABLE = "CL_KERNELS_BACKEND"
# The CUDA library has not run on a GPU yet: it serves who asks for it by name.
PREFERENCE = {"cpu": ("native", "chunked"), "cuda": ("triton", "chunked")}

_requested: list[str] = []
_usable: dict[tuple[str, torch.device | str, torch.dtype], str | None] = {}

Function = TypeVar("Function", bound=Callable)


def check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_environment = os.environ.get(ENVIRONMENT_VARIABLE, "")
if _environment:
    check_name(_environment, ENVIRONMENT_VARIABLE)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serves every call inside the block with one backend, in all threads.

    A call whose ``backend=`` names another keeps its own. Gradients are computed by the backend
    of their forward call, wherever ``backward`` runs.

    Args:
        name: ``"reference"``, ``"chunked"``, ``"native"`` or ``"triton"``.
    """
    _requested.append(check_name(name, "name"))
    try:
        yield
    finally:
        _requested.pop()


def called_while_tracing(function: Function) -> Function:
    """Has torch.compile call the function, not trace it, and take its result for a constant.

    It is ``torch.compiler.assume_constant_result``, which would import torch._dynamo, and Triton
    with it, for everybody who imports this package.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@called_while_tracing  # it imports backends and loads libraries
def reason_against(name: str, device: torch.device | str, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve such tensors on a device, or None if it can."""
    case = name, device, dtype
    if case in _usable:
        return _usable[case]
    one = _one_device(device)
    if one != device:
        return reason_against(name, one, dtype)
    try:
        module = backend_module(name)
    except ImportError as error:
        reason = f"it does not import: {error}"
    else:
        reason = module.unavailable() or module.unsupported(one, dtype)
    _usable[case] = reason
    return reason


def _one_device(device: torch.device | str) -> torch.device:
    """What a tensor there would say: "cuda" is whichever GPU is current."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def requested(backend: str | None) -> tuple[str, str] | None:
    """The backend asked for and where it was asked, or None if nobody asked."""
    if backend is not None:
        return check_name(backend, "backend"), "backend argument"
    if _requested:
        return _requested[-1], "use_backend"
    if _environment:
        return _environment, ENVIRONMENT_VARIABLE
    return None


def choose(backend: str | None, device: torch.device | str, dtype: torch.dtype) -> str:
    """The backend's name for such tensors; an explicit request is served or refused."""
    device = torch.device(device)
    request = requested(backend)
    if request is not None:
        name, source = request
        reason = reason_against(name, device, dtype)
        if reason is not None:
            raise ValueError(f"backend: {name!r} (from {source}) cannot serve this call: {reason}")
        return name
    for name in PREFERENCE.get(device.type, ()):
        if reason_against(name, device, dtype) is None:
            return name
    return "chunked"
