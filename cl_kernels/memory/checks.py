"""Arguments that the memories share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels.checks import DTYPES, check_embeddings


def check_dtype(dtype: Any) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")


def check_momentum(value: Any, name: str = "momentum") -> None:
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected from 0 to 1, got {value}")


def check_stored(name: str, x: Tensor, where: str, dim: int, device: torch.device) -> None:
    """Raises unless x are embeddings that fit in the memory called ``where``."""
    check_embeddings(name, x)
    if x.shape[1] != dim:
        raise ValueError(f"{name}: expected the width of the {where}, {dim}, got {x.shape[1]}")
    if x.device != device:
        raise ValueError(f"{name}: expected the device of the {where}, {device}, got {x.device}")
