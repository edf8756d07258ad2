"""Triton's cache keys of the kernels, made the same in every process.

A kernel's key is a hash of its source and of what it calls. Triton 3.6 leaves the globals of an
inner function out of it unless that function was hashed before, so the key depends on which kernels
ran first, and a process compiles again what another left in the cache. Hashing all of them in one
order, before any runs, settles it.
"""

from __future__ import annotations

import sys

from .tiles import INTERPRETED

MODULES = (
    "tiles", "survivors", "ids", "pairs", "prepare", "folds", "weights", "states", "forward",
    "weighted_key", "backward", "slabs", "gram", "topk",
)  # fmt: skip


def settle() -> None:
    if INTERPRETED:
        return
    from triton.runtime.jit import JITCallable

    for name in MODULES:
        for value in list(vars(sys.modules[f"{__package__}.{name}"]).values()):
            if isinstance(value, JITCallable):
                value.cache_key  # noqa: B018  # it is computed once and kept
