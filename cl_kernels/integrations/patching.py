"""Our classes and functions under another library's names."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from cl_kernels._patches import undo

# Ours by the name of the library's module whose names they take; each has ``REPLACED``, pairs of
# the library's object and ours.
LIBRARIES = ("sentence_transformers", "pytorch_metric_learning")


def patch(*libraries: str) -> None:
    """Puts ours in the place of a library's losses and searches, wherever its modules name them.

    What other code has taken from the library before (``from library import X``) stays the
    library's: call it first. Objects that were made before are not changed.

    Args:
        libraries: Names; default: all of ``LIBRARIES`` that are installed.

    Raises:
        ValueError: A name is none of ``LIBRARIES``.
        ImportError: A library is not installed, or in a version that is not known here.

    Example::

        cl_kernels.integrations.patch("sentence_transformers")
    """
    for library in _checked(libraries):
        if library in undo:
            continue
        try:
            ours = import_module(f"{__package__}.{library}")
        except ImportError:
            if not libraries:
                continue
            raise
        places = []
        for theirs, replacement in ours.REPLACED:
            for module in _modules(library):
                for name, found in [*vars(module).items()]:
                    if found is theirs:
                        places.append((module, name, theirs))
                        setattr(module, name, replacement)
        undo[library] = places


def unpatch(*libraries: str) -> None:
    """Puts the library's own back; default: those of all that are patched."""
    for library in _checked(libraries or tuple(undo)):
        for module, name, theirs in undo.pop(library, ()):
            setattr(module, name, theirs)


def _checked(libraries: tuple[str, ...]) -> tuple[str, ...]:
    for library in libraries:
        if library not in LIBRARIES:
            known = ", ".join(map(repr, LIBRARIES))
            raise ValueError(f"libraries: expected of {known}, got {library!r}")
    return libraries or LIBRARIES


def _modules(library: str) -> list[Any]:
    """Those that are imported, of the library."""
    within = f"{library}."
    return [m for name, m in [*sys.modules.items()] if name == library or name.startswith(within)]
