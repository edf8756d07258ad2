"""The backward pass of a step: scaled, divided, and not of a loss that is not finite."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cl_kernels.checks import readable
from cl_kernels.grad_cache.failure import check_finite
from cl_kernels.grad_cache.replay import autocast_disabled


class Scaler(Protocol):
    """What is used of ``torch.amp.GradScaler``."""

    def scale(self, outputs: Tensor) -> Any: ...
    def is_enabled(self) -> bool: ...


def check_scaled_by_caller(scaler: Scaler | None, accumulation_steps: int) -> None:
    """Raises for settings that the caller of ``backward()`` might count on."""
    if _enabled(scaler) is not None:
        raise ValueError(
            "scaler: expected none for a call, whose loss the caller scales, as "
            "scaler.scale(loss).backward(), got one; cache.step(...) uses it"
        )
    if accumulation_steps > 1:
        raise ValueError(
            "accumulation_steps: expected 1 for a call, whose loss the caller divides, as "
            f"(loss / steps).backward(), got {accumulation_steps}; cache.step(...) uses it"
        )


def backward(
    loss: Tensor,
    scaler: Scaler | None,
    accumulation_steps: int,
    ddp: list[DistributedDataParallel],
) -> None:
    scaler = _enabled(scaler)
    if scaler is None and readable(loss):
        check_finite(loss, ddp)
    scaled = loss / accumulation_steps
    with autocast_disabled():
        (scaled if scaler is None else scaler.scale(scaled)).backward()


def _enabled(scaler: Scaler | None) -> Scaler | None:
    return scaler if scaler is not None and scaler.is_enabled() else None
