"""Which libraries have our classes in the place of their own."""

from __future__ import annotations

from typing import Any

undo: dict[str, list[tuple[Any, Any]]] = {}  # by library: what stands there now for what


def patched() -> tuple[str, ...]:
    """Names of the libraries that ``cl_kernels.integrations.patch`` has patched."""
    return tuple(undo)
