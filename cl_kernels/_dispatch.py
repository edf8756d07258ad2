"""Which backend serves a call: the argument, else the context, else the environment, else the
first of the device's list that can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from cl_kernels._scopes import Scopes
from cl_kernels._spread import spreading
from cl_kernels._tracing import called_while_tracing
from cl_kernels.backends import BACKENDS, backend_module, offered

ENVIRONMENT_VARIABLE = "CL_KERNELS_BACKEND"

_requested: Scopes[str] = Scopes()
_usable: dict[tuple[str, torch.device | str, torch.dtype], str | None] = {}
_chosen: dict[Request, str] = {}  # for calls that ask for no backend by name


class Request(NamedTuple):
    """What a backend is asked to serve.

    Args:
        operation: The name of its schema, such as "row_logsumexp".
        device: Of the embeddings.
        dtype: Of the embeddings.
        compute_dtype: Of the tile products.
        width: Columns of the embeddings.
        options: Names of what is given of ``Pairs``, beside filters.
    """

    operation: str
    device: torch.device
    dtype: torch.dtype
    compute_dtype: torch.dtype
    width: int
    options: tuple[str, ...] = ()


def check_name(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# A wrong name is told at the first call that asks for it: doctor() has to import to explain it.
_environment = os.environ.get(ENVIRONMENT_VARIABLE, "")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serves every call that this thread makes inside the block with one backend.

    A call whose ``backend=`` names another keeps its own. Gradients are computed by the backend
    of their forward call, wherever ``backward`` runs. What torch.compile traced is traced anew.

    Args:
        name: ``"reference"``, ``"chunked"``, ``"native"`` or ``"triton"``.
    """
    with _requested.entered(check_name(name, "name")):
        yield


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
    scoped = _requested.innermost()
    if scoped is not None:
        return scoped, "use_backend"
    if _environment:
        return check_name(_environment, ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE
    return None


def refusal(name: str, request: Request) -> str | None:
    """Why this backend cannot serve a call, or None if it can."""
    return _refusal(name, *request)


@called_while_tracing
def _refusal(name: str, *request) -> str | None:
    asked = Request(*request)
    reason = reason_against(name, asked.device, asked.dtype)
    return backend_module(name).refuses(asked) if reason is None else reason


def choose(backend: str | None, request: Request) -> str:
    """The backend's name; an explicit request is served or refused, any other one is served."""
    name, spread = _chosen_here(backend, request), spreading.innermost()
    return name if spread is None else spread(name, request.operation)


def _chosen_here(backend: str | None, request: Request) -> str:
    asked = requested(backend)
    if asked is not None:
        name, source = asked
        reason = refusal(name, request)
        if reason is not None:
            raise ValueError(f"backend: {name!r} (from {source}) cannot serve this call: {reason}")
        return name
    if torch.compiler.is_compiling() or not isinstance(request.width, int):  # a symbol
        return _first_that_serves(request)
    name = _chosen.get(request)
    if name is None:
        name = _first_that_serves(request)
        if _one_device(request.device) == request.device:  # the current one may be another
            _chosen[request] = name
    return name


def _first_that_serves(request: Request) -> str:
    return next(name for name in offered(request.device.type) if refusal(name, request) is None)
