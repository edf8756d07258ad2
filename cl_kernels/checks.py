"""Argument checks: a bad argument raises, naming itself, what was expected and what came."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from cl_kernels._numbers import check_integer, check_number
from cl_kernels._precision import accumulator
from cl_kernels._transforms import refuse_transforms
from cl_kernels.pairs import PairFilter, Where, as_filters
from cl_kernels.reading import readable

Bound = float | Tensor | None

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_embeddings(name: str, x: Tensor, *, streamed: bool = True) -> None:
    """Raises unless x is a matrix that the kernels serve; ``streamed``: that they shall see."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        kind = "nested" if x.is_nested else str(x.layout)
        raise TypeError(f"{name}: expected a dense tensor, got a {kind} one")
    if streamed:
        refuse_transforms(name, x)
    if x.dtype not in DTYPES:
        supported = ", ".join(str(d) for d in DTYPES)
        raise TypeError(f"{name}: expected one of {supported}, got {x.dtype}")
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"{name}: expected embeddings of shape [rows, width >= 1], got shape {list(x.shape)}"
        )


def as_pair(query: Tensor, key: Tensor, *, streamed: bool = True) -> tuple[Tensor, ...]:
    check_embeddings("query", query, streamed=streamed)
    check_embeddings("key", key, streamed=streamed)
    return as_alike(query=query, key=key)


def as_alike(**embeddings: Tensor) -> tuple[Tensor, ...]:
    """The tensors, checked to have the width, dtype and device of the first.

    Under autocast dtypes may differ, as they may there in torch's own products: the widest counts.
    """
    (like_name, like), *others = embeddings.items()
    for name, x in others:
        if x.dtype != like.dtype and autocast_dtype(like.device) is not None:
            widest = reduce(torch.promote_types, (x.dtype for x in embeddings.values()))
            return as_alike(**{name: x.to(widest) for name, x in embeddings.items()})
        check_matches(name, x, like_name, like)
    return tuple(embeddings.values())


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast multiplies float32 embeddings in, None where it is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


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


def check_indices(name: str, index: Tensor, query: Tensor, num_keys: int, least: int = 0) -> None:
    """Raises unless there is an index in [least, num_keys) for each query; -1 stands for none."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{name}: expected an int64 or int32 tensor, got {kind}")
    if index.shape != query.shape[:1]:
        raise ValueError(
            f"{name}: expected one index for each of the {query.shape[0]} queries, "
            f"got shape {list(index.shape)}"
        )
    if index.device != query.device:
        raise ValueError(
            f"{name}: expected the device of query, {query.device}, got {index.device}"
        )
    if readable(index) and index.numel():
        low, high = (int(x) for x in index.aminmax())
        if low < least or high >= num_keys:
            none = ", or -1" if least < 0 else ""
            raise ValueError(
                f"{name}: expected indices in [0, {num_keys}){none}, got {low} to {high}"
            )


def as_bound(name: str, bound: Bound, query: Tensor) -> Tensor | None:
    """A bound of similarities for each query, [M], from a number or from one for each."""
    if bound is None:
        return None
    bounds = as_vector(name, bound, query, query.shape[0], "queries").detach()
    if readable(bounds) and not _plainly_finite(bound, bounds) and bool(bounds.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got a NaN")
    return bounds


def check_window(below: Tensor | None, above: Tensor | None) -> None:
    """Raises where no similarity is between a query's two bounds."""
    if below is None or above is None or not readable(below):
        return
    if bool((below <= above).any()):
        at = int((below <= above).nonzero()[0])
        raise ValueError(
            f"below: expected more than above, got {below[at].item()} and {above[at].item()} for "
            f"query {at}"
        )


def as_bias(name: str, bias: float | Tensor | None, like: Tensor, count: int, rows: str):
    """What is added to the logits of each row, [count], differentiably."""
    if bias is None:
        return None
    biases = as_vector(name, bias, like, count, rows)
    if readable(biases) and not (_plainly_finite(bias, biases) or bool(biases.isfinite().all())):
        raise ValueError(f"{name}: expected finite numbers, got others")
    return biases


def _plainly_finite(given: float | Tensor, vector: Tensor) -> bool:
    """Whether all of a vector are finite, as far as the number it was made from or its sum tells:
    at small batches more operations would take longer than what the vector is for."""
    if isinstance(given, Tensor):
        return math.isfinite(vector.detach().sum().item())
    return bool(abs(given) <= torch.finfo(vector.dtype).max)


def as_vector(name: str, x: float | Tensor, like: Tensor, count: int, rows: str) -> Tensor:
    """A number, or one for each of ``count`` rows, in the accumulation type, [count]."""
    if isinstance(x, Tensor):
        if not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype}")
        if x.dim() > 1 or (x.dim() == 1 and x.shape[0] != count):
            raise ValueError(
                f"{name}: expected a number, or one for each of the {count} {rows}, "
                f"got shape {list(x.shape)}"
            )
        if x.device != like.device and x.dim():
            raise ValueError(
                f"{name}: expected the device of the embeddings, {like.device}, got {x.device}"
            )
        refuse_transforms(name, x)
    else:
        check_number(name, x, "a number or a tensor")
        if not torch.compiler.is_compiling():
            return torch.full((count,), x, dtype=accumulator(like), device=like.device)
        x = as_factor(x, like)
    if x.dim() and x.dtype == accumulator(like):
        return x.contiguous()
    vector = x.to(dtype=accumulator(like), device=like.device)
    return (vector if vector.dim() else vector.expand(count)).contiguous()


def check_count(name: str, value: int, most: int | None = None) -> int:
    check_integer(name, value)
    if torch.compiler.is_compiling():  # a symbol would be bounded for ever
        most = None
    if value < 1 or (most is not None and value > most):
        expected = "at least 1" if most is None else f"1 to {most}"
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return value if isinstance(value, (int, torch.SymInt)) else int(value)


def as_scalar(
    name: str,
    value: float | Tensor,
    like: Tensor | None = None,
    *,
    inverted: bool = False,
    streamed: bool = True,
) -> float | Tensor:
    """A finite number, or a 0-d tensor of one; its inverse if ``inverted``.

    Args:
        name: The argument's name, for messages.
        value: A real number of Python or NumPy, or a floating tensor of one element.
        like: Embeddings in whose accumulation type the result must be finite.
        inverted: The result is ``1 / value``, so value may not be zero.
        streamed: Whether kernels shall see it.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
            Numbers that live on a GPU are checked under ``cl_kernels.debug_checks()`` only:
            reading them would wait for the GPU.
    """
    expected = "a number or a 0-d tensor"
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {value.dtype}")
        if value.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got a {value.layout} one")
        if value.dim() > 1 or value.numel() != 1:
            raise ValueError(f"{name}: expected {expected}, got shape {list(value.shape)}")
        if like is not None and value.is_meta and not like.is_meta:
            raise ValueError(f"{name}: expected a tensor that holds a number, got one on meta")
        value = value.reshape(()) if value.dim() else value
        if streamed:
            refuse_transforms(name, value)
        if readable(value):
            _check_number(name, value.item(), like, inverted)
        if not inverted:
            return value
        # float16 cannot hold the inverse of a temperature below 1.5e-5.
        dtype = torch.float32 if like is None else accumulator(like)
        return 1 / value.to(torch.promote_types(value.dtype, dtype))
    check_number(name, value, expected)
    if not torch.compiler.is_compiling():
        _check_number(name, _as_float(value), like, inverted)
        value = float(value)
    elif like is not None:
        value = as_factor(value, like)
    return 1 / value if inverted else value


def as_factor(number: float, like: Tensor) -> Tensor:
    """A number as a 0-d tensor: torch.compile compiles anew for every value of a symbol, unless it
    is a factor."""
    return like.new_ones((), dtype=accumulator(like)) * number


def _as_float(number: float) -> float:
    """Infinite where an integer is too large for a float."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _check_number(name: str, number: float, like: Tensor | None, inverted: bool) -> None:
    if not math.isfinite(number) or (inverted and number == 0):
        expected = "a finite number other than zero" if inverted else "a finite number"
        raise ValueError(f"{name}: expected {expected}, got {number}")
    dtype = torch.float64 if like is None else accumulator(like)
    largest = torch.finfo(dtype).max
    if abs(number) < 1 / largest if inverted else abs(number) > largest:
        what = "a number whose inverse is finite" if inverted else "a number that is finite"
        raise ValueError(f"{name}: expected {what} in {dtype}, got {number}")
