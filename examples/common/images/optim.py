"""Optimisers and the schedule of the learning rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from examples.common.images.config import ImageConfig


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rates: You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1.

    Each tensor of weights ``w`` with gradient ``g`` takes momentum steps at the local rate
    ``trust |w| / (|g| + weight_decay |w|)``. Groups with ``adapt=False`` (biases and norms, as in
    SimCLR) take them at rate 1.

    Args:
        params: Parameters, or groups of them.
        lr: The global rate.
        momentum, weight_decay, trust: m, beta and eta of the paper.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}: expected a number from 0 up, got {value}")
        if not trust > 0:
            raise ValueError(f"trust: expected a positive number, got {trust}")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust": trust,
                "adapt": True,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        return loss

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        step = weight.grad.add(weight, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if group["adapt"]:
            step *= _local_rate(weight, group["trust"], group["weight_decay"])
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        state["velocity"].mul_(group["momentum"]).add_(step, alpha=group["lr"])
        weight -= state["velocity"]


def _local_rate(weight: Tensor, trust: float, decay: float) -> Tensor:
    size, slope = weight.norm(), weight.grad.norm()  # type: ignore[union-attr]
    rate = trust * size / (slope + decay * size)
    # Weights that are zero would stay zero; there the rate is the global one.
    return torch.where((size > 0) & (slope > 0), rate, torch.ones_like(rate))


def make_optimizer(model: nn.Module, config: ImageConfig) -> torch.optim.Optimizer:
    """Weight decay, and LARS' adaptation, for matrices and filters only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "lars":
        groups[1]["adapt"] = False
        return LARS(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def make_scheduler(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> SequentialLR:
    """Linear warm-up, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    schedules = [
        LinearLR(optimizer, start_factor=1 / rising, total_iters=rising),
        CosineAnnealingLR(optimizer, T_max=max(1, steps - rising)),
    ]
    return SequentialLR(optimizer, schedules, milestones=[rising])
