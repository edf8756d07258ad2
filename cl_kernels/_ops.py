"""Operations of torch.library: one schema each, one overload per backend.

``torch.ops.cl_kernels.row_logsumexp.chunked`` is the chunked backend's ``row_logsumexp``: the
overloads share a schema, so a backend is picked by name before the call, the dispatcher does no
guessing, and torch.compile sees one opaque operation with a fake. The tables that say which
operations there are stand beside what they compute: ``statistics``, ``search``, ``losses``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cl_kernels._interrupts import interruptible
from cl_kernels._precision import accumulator
from cl_kernels._spread import Spread
from cl_kernels.backends import BACKENDS, backend_module

_library = torch.library.Library("cl_kernels", "DEF")
_overloads: dict[tuple[str, str], Callable[..., Any]] = {}
_composed: dict[str, Callable[..., Any]] = {}
schemas: dict[str, str] = {}  # of the operations that have an overload per backend
defined: dict[str, Callable[..., Any]] = {}  # the Python code of operations and of overloads


def overload(operation: str, backend: str) -> Callable[..., Any]:
    """The operation to be called; a native one lets Ctrl-C out. One that processes serve together
    is composed: in a library it is a single call."""
    if isinstance(backend, Spread):
        return _without_autocast(_composed[operation], _itself, backend)
    return _overloads[operation, backend]


def new_like(x: Tensor, *size) -> Tensor:
    """For fakes: a result of the accumulation type."""
    return x.new_empty(size, dtype=accumulator(x))


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]):
    """An operation of Python code, which torch.compile calls without looking inside."""
    name = _library.define(schema)
    defined[name] = implementation
    torch.library.register_fake(f"cl_kernels::{name}", fake, lib=_library)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    return getattr(torch.ops.cl_kernels, name).default


def define_overloads(
    operation: str,
    schema: str,
    fake: Callable[..., Any],
    implementation: Callable[..., Any],
    *,
    composed: bool = False,
) -> None:
    """An overload for each backend: ``implementation(module, *arguments)`` with its module.

    A compiled backend's implementation comes from its library. ``composed``: the implementation
    takes the backend's name instead and serves compiled backends too, where their library for the
    device has none of its own.
    """
    schemas[operation] = schema
    if composed:
        _composed[operation] = implementation
    for backend, properties in BACKENDS.items():
        name = f"{operation}.{backend}"
        _library.define(name + schema)
        torch.library.register_fake(f"cl_kernels::{name}", fake, lib=_library)
        compute = getattr(getattr(torch.ops.cl_kernels, operation), backend)
        given = str if composed else backend_module  # the name itself
        python = None
        if composed or not properties.compiled:
            python = defined[name] = _without_autocast(implementation, given, backend)
        if properties.compiled:
            python = _loading(backend, compute, python)
        assert python is not None
        _library.impl(name, python, "CompositeExplicitAutograd")
        _overloads[operation, backend] = interruptible(compute) if properties.compiled else compute


def _loading(
    backend: str, compute: Callable[..., Any], otherwise: Callable[..., Any] | None
) -> Callable[..., Any]:
    """What torch calls before the library is loaded: by a program that was exported elsewhere, in
    whose process nobody chose a backend yet. After that, what the library does not have."""

    def python(*args):
        x = _first_tensor(args)
        reason = backend_module(backend).unsupported(x.device, x.dtype)  # loads it
        if reason is None and not getattr(_loaded, "just_now", False):
            _loaded.just_now = True
            try:
                return compute(*args)
            finally:
                _loaded.just_now = False
        if otherwise is not None:
            return otherwise(*args)
        reason = reason or "the compiled kernels take dense tensors of one device"
        raise NotImplementedError(f"cl_kernels: {compute} has no kernel for this call: {reason}")

    return python


_loaded = threading.local()


def _first_tensor(args: Sequence[Any]) -> Tensor:
    flat = (x for a in args for x in (a if isinstance(a, (list, tuple)) else (a,)))
    return next(x for x in flat if isinstance(x, Tensor))


def _itself(backend: str) -> str:
    return backend


def _without_autocast(
    implementation: Callable[..., Any], given: Callable[[str], ModuleType | str], backend: str
) -> Callable[..., Any]:
    def python(*args):
        # The tile products' dtype is an argument: autocast has had its say already.
        device_type = _first_tensor(args).device.type
        if not torch.is_autocast_enabled(device_type):
            return implementation(given(backend), *args)
        with torch.autocast(device_type, enabled=False):
            return implementation(given(backend), *args)

    return python
