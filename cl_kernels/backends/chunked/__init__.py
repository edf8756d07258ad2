"""Plain torch, one tile at a time: always available, on any device, never M x N.

The last resort: several times slower than the compiled kernels, exact all the same.
"""

from __future__ import annotations

import torch

from .statistics import (
    row_col_logsumexp,
    row_col_logsumexp_backward,
    row_logsumexp,
    row_logsumexp_backward,
    row_logsumexp_mean_key,
    self_logsumexp,
    self_logsumexp_backward,
)
from .topk import select_topk, topk

__all__ = [
    "row_col_logsumexp",
    "row_col_logsumexp_backward",
    "row_logsumexp",
    "row_logsumexp_backward",
    "row_logsumexp_mean_key",
    "select_topk",
    "self_logsumexp",
    "self_logsumexp_backward",
    "topk",
    "unavailable",
    "unsupported",
]


def unavailable() -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    return None
