"""Argument checks: a bad argument raises, naming itself, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cl_kernels.pairs import PairFilter, Where, as_filters

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_debug_depth = 0


@contextmanager
def debug_checks() -> Iterator[None]:
    """Checks values that live on a GPU too (each check waits for the GPU)."""
    global _debug_depth
    _debug_depth += 1
    try:
        yield
    finally:
        _debug_depth -= 1


def readable(x: Tensor) -> bool:
    """Whether a check may read x: not while torch.compile traces, and not on a GPU, which that
    would wait for, unless ``debug_checks`` asks for it."""
    return not torch.compiler.is_compiling() and (x.device.type == "cpu" or _debug_depth > 0)


def check_embeddings(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        supported = ", ".join(str(d) for d in DTYPES)
        raise TypeError(f"{name}: expected one of {supported}, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"{name}: expected embeddings of shape [rows, width >= 1], got shape {list(x.shape)}"
        )


def check_pair(query: Tensor, key: Tensor) -> None:
    check_embeddings("query", query)
    check_embeddings("key", key)
    check_matches("key", key, "query", query)


def check_matches(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """Raises unless x has the width, dtype and device of ``like``."""
    if x.shape[-1] != like.shape[-1]:
        raise ValueError(
            f"{name}: expected the width of {like_name}, {like.shape[-1]}, got {x.shape[-1]}"
        )
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: expected the dtype of {like_name}, {like.dtype}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(
            f"{name}: expected the device of {like_name}, {like.device}, got {x.device}"
        )


def refuse_unbuilt(**options) -> None:
    for name, value in options.items():
        if value is not None:
            raise NotImplementedError(f"{name}: this option is not built yet; pass None")


def check_filters(
    where: Where, shape: tuple[int, int], device: torch.device
) -> tuple[PairFilter, ...]:
    """Filters on M x N pairs, ``shape``, whose ids are on this device."""
    filters = as_filters(where)
    for f in filters:
        for name, ids, rows in (
            ("query_ids", f.query_ids, shape[0]),
            ("key_ids", f.key_ids, shape[1]),
        ):
            if ids.shape[0] != rows:
                raise ValueError(
                    f"where: expected {name} with one id for each of the {rows} rows, "
                    f"got {ids.shape[0]}"
                )
            if ids.device != device:
                raise ValueError(
                    f"where: expected {name} on the device of the embeddings, {device}, "
                    f"got {ids.device}"
                )
    return filters


def check_count(name: str, value: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1 or (most is not None and value > most):
        expected = "at least 1" if most is None else f"1 to {most}"
        raise ValueError(f"{name}: expected {expected}, got {value}")


def check_scalar(name: str, value: float | Tensor, *, nonzero: bool = False) -> None:
    """Raises unless value is a finite real number or a 0-d floating tensor of one.

    Numbers that live on a GPU are checked under ``cl_kernels.debug_checks()`` only: reading them
    would wait for the GPU.
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
        if value.dim() != 0:
            raise ValueError(
                f"{name}: expected a number or a 0-d tensor, got shape {list(value.shape)}"
            )
        if not readable(value):
            return
        number = value.item()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = value
    else:
        raise TypeError(f"{name}: expected a number or a 0-d tensor, got {type(value).__name__}")
    if torch.compiler.is_compiling():  # a number may be symbolic there
        return
    if not math.isfinite(number) or (nonzero and number == 0):
        expected = "a finite number other than zero" if nonzero else "a finite number"
        raise ValueError(f"{name}: expected {expected}, got {number}")
