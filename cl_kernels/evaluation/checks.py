"""Argument checks that the evaluations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cl_kernels import _numbers
from cl_kernels._numbers import check_integers
from cl_kernels.checks import check_embeddings

_ROWS = 8192  # rows looked at a time


def check_finite_embeddings(name: str, x: Tensor) -> None:
    """Raises unless x is [rows >= 1, D] without NaN and infinity.

    Values are read, on a GPU too: a score computed from broken embeddings misleads.
    """
    check_embeddings(name, x)
    if len(x) == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    finite = torch.cat([rows.isfinite().all(1) for rows in x.detach().split(_ROWS)])
    broken = (~finite).nonzero().flatten()
    if len(broken):
        raise ValueError(
            f"{name}: expected finite embeddings, got NaN or infinity in {len(broken)} of "
            f"{len(x)} rows, the first is row {int(broken[0])}"
        )


def check_corpus(name: str, x: Any) -> int:
    """The rows of a corpus [N >= 1, D]; ``topk`` looks at the rest."""
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"{name}: expected a tensor or a NumPy array, got {type(x).__name__}")
    if len(shape) != 2:
        raise ValueError(f"{name}: expected embeddings of shape [N, D], got shape {list(shape)}")
    if shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    return shape[0]


def check_labels(
    name: str,
    labels: Tensor,
    rows: int | None = None,
    like: str = "",
    device: torch.device | None = None,
) -> Tensor:
    """Labels as int64, one for each of the rows of ``like``, on its device, if these are given."""
    check_integers(name, labels, booleans=True)
    if labels.dim() != 1 or (rows is not None and len(labels) != rows):
        count = "" if rows is None else f" for each of the {rows} rows of {like}"
        raise ValueError(f"{name}: expected one label{count} (1-D), got {list(labels.shape)}")
    if device is not None and labels.device != device:
        raise ValueError(f"{name}: expected the device of {like}, {device}, got {labels.device}")
    return labels.to(torch.int64)


def check_number(name: str, value: float, expected: str, holds: Callable[[float], bool]) -> None:
    _numbers.check_number(name, value)
    if not holds(value):
        raise ValueError(f"{name}: expected {expected}, got {value}")
