"""Whether arguments are numbers, integers (NumPy's count, booleans do not) or booleans."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_integer(name: str, value: Any, least: int | None = None, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}{why}, got {value}")


def check_number(name: str, value: Any, expected: str = "a number") -> None:
    if type(value) is float:  # as most are; asking an abstract class takes ten times as long
        return
    if isinstance(value, bool) or not isinstance(value, (Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_integers(name: str, x: Any, *, booleans: bool = False) -> None:
    """Raises unless x is a tensor of integers, or of booleans if they will do."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected an integer tensor, got {type(x).__name__}")
    if x.is_floating_point() or x.is_complex() or (x.dtype == torch.bool and not booleans):
        raise TypeError(f"{name}: expected an integer tensor, got {x.dtype}")
