"""What GradCache is set up with, and what its loss returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

Loss = Tensor | Mapping[str, Tensor]


def check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name}: expected a callable, got {type(value).__name__}")


def check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")


def check_chunks(chunk_size: Any, max_tokens: Any) -> None:
    if chunk_size is None and max_tokens is None:
        raise ValueError("chunk_size: expected a number where max_tokens is None, got None")
    for size in chunk_size if isinstance(chunk_size, Sequence) else [chunk_size]:
        if size is not None:
            check_count("chunk_size", size)
    if max_tokens is not None:
        check_count("max_tokens", max_tokens)


def one_each(name: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name}: expected one for each of the {count} inputs, got {len(value)}")
    return list(value)


def check_loss(loss: Any) -> Loss:
    """A 0-d tensor, or a mapping of names to such."""
    if not isinstance(loss, Mapping):
        _check_number("loss", loss)
        return loss
    if not loss:
        raise ValueError("loss: expected a 0-d tensor or a mapping of such, got an empty mapping")
    for name, part in loss.items():
        _check_number(f"loss[{name!r}]", part)
    return loss


def total_of(loss: Loss) -> Tensor:
    """What a mapping names "loss", else the sum of all that it names."""
    if isinstance(loss, Tensor):
        return loss
    if "loss" in loss:
        return loss["loss"]
    first, *others = loss.values()
    return sum(others, first)


def detached(loss: Loss) -> Any:
    if isinstance(loss, Tensor):
        return loss.detach()
    return {name: part.detach() for name, part in loss.items()}


def check_trained(loss: Loss) -> None:
    if not total_of(loss).requires_grad:
        raise ValueError(
            "loss: expected one that requires grad, got one that does not; is every encoder "
            "frozen or run under torch.no_grad()?"
        )


def _check_number(name: str, loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: expected a 0-d tensor, got {type(loss).__name__}")
    if loss.dim() != 0:
        raise ValueError(f"{name}: expected a 0-d tensor, got shape {list(loss.shape)}")
