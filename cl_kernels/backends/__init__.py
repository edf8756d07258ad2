"""The backends, a module each, in the order in which calls are offered to them.

A backend is a line of this table and a module that offers ``unavailable``, ``unsupported`` and
``refuses``, which say in words what it does not serve, and, unless it is compiled,
``forward``, ``weighted_key``, ``backward`` and ``topk``: see ``reference``, the specification.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

EVERYWHERE = ("*",)


class Backend(NamedTuple):
    """What is known of a backend before it is imported.

    Args:
        offered_on: Types of device whose calls it is offered without being asked for by name.
        compiled: Its operations are registered by a shared library, not by Python.
        halves_gram_on: Types of device where it visits half of a symmetric matrix.
    """

    offered_on: tuple[str, ...] = ()
    compiled: bool = False
    halves_gram_on: tuple[str, ...] = ()


BACKENDS = {
    # Its CUDA library was right on a GPU and not timed: it serves who asks for it by name.
    "native": Backend(("cpu",), compiled=True, halves_gram_on=("cpu",)),
    "triton": Backend(("cuda",), halves_gram_on=("cuda",)),
    "chunked": Backend(EVERYWHERE),
    "reference": Backend(),
}


@cache
def backend_module(name: str) -> ModuleType:
    """The backend's module, imported at its first use."""
    return import_module(f"cl_kernels.backends.{name}")


def offered(device_type: str) -> tuple[str, ...]:
    """Backends to which calls on such a device are offered, the first choice first."""
    return tuple(
        name
        for name, backend in BACKENDS.items()
        if device_type in backend.offered_on or backend.offered_on == EVERYWHERE
    )
