"""Plain torch, one tile at a time: always available, on any device, never M x N.

The last resort: several times slower than the compiled kernels, exact all the same.
"""

from __future__ import annotations

import torch

from .statistics import backward, forward, weighted_key
from .topk import topk

__all__ = [
    "backward",
    "forward",
    "refuses",
    "topk",
    "unavailable",
    "unsupported",
    "weighted_key",
]


def unavailable() -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def refuses(request) -> str | None:
    return None
