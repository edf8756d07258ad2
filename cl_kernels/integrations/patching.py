"""Our classes and functions under another library's names."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from cl_kernels._patches import patched, undo

# Ours by the name of the library's module whose names they take; each has ``REPLACED``, pairs of
# the library's object and ours.
LIBRARIES = ("sentence_transformers", "pytorch_metric_learning")


def patch(*libraries: str) -> None:
    """Puts ours in the place of a library's losses and searches, wherever its modules name them.

    What other code has taken from the library before (``from library import X``) stays the
    library's: call it first. Objects that were made before are not changed; until
    ``unpatch`` they cannot be pickled, since their class is not what its module names.

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
        for theirs, replacement in ours.REPLACED:
            _replace(library, theirs, replacement)
        undo[library] = [*ours.REPLACED]


def unpatch(*libraries: str) -> None:
    """Puts the library's own back; default: those of all that are patched."""
    for library in _checked(libraries) if libraries else patched():
        for theirs, replacement in undo.pop(library, ()):
            _replace(library, replacement, theirs)


def _checked(libraries: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of modules; those of packages, with a hyphen, are taken for them."""
    libraries = tuple(x.replace("-", "_") if isinstance(x, str) else x for x in libraries)
    for library in libraries:
        if library not in LIBRARIES:
            known = ", ".join(map(repr, LIBRARIES))
            raise ValueError(f"libraries: expected names among {known}, got {library!r}")
    return libraries or LIBRARIES


def _replace(library: str, old: Any, new: Any) -> None:
    """Wherever the library's imported modules name it."""
    for name, module in [*sys.modules.items()]:
        if name == library or name.startswith(f"{library}."):
            for attribute, found in [*vars(module).items()]:
                if found is old:
                    setattr(module, attribute, new)
