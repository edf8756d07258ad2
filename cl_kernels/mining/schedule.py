"""A curriculum for hard negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cl_kernels._numbers import check_integer, check_number


@dataclass(frozen=True)
class MiningSchedule:
    """A share or a temperature of hard negatives that moves over the training steps.

    Only the hardest negatives from the first step on can collapse a model to a single point
    (Schroff et al., "FaceNet" (2015), section 3.2; Xuan et al., "Hard negative examples are hard,
    but useful" (2020)). So begin with all of them, or a high temperature, and harden::

        share = MiningSchedule(start=1.0, end=0.05, steps=10_000)
        for step in range(total_steps):
            loss = info_nce(query, key, hardest=share.count(step, len(query) - 1))

        heat = MiningSchedule(start=1.0, end=0.02, steps=10, curve="cosine")
        for epoch in range(epochs):
            mined = mine_hard_negatives(
                query, corpus, positives,
                sampling="softmax", sampling_temperature=heat.value(epoch),
            )

    Args:
        start: The value up to step ``wait``.
        end: The value from step ``wait + steps`` on.
        steps: How long the way from one to the other takes, at least 1.
        wait: Steps before it begins.
        curve: ``"linear"``, or ``"cosine"``: slow at both ends.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """

    start: float
    end: float
    steps: int
    wait: int = 0
    curve: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            check_number(name, value)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        for name, least in (("steps", 1), ("wait", 0)):
            check_integer(name, getattr(self, name), least)
        if self.curve not in ("linear", "cosine"):
            raise ValueError(f'curve: expected "linear" or "cosine", got {self.curve!r}')

    def value(self, step: int) -> float:
        """The share or temperature at a step."""
        progress = min(max((step - self.wait) / self.steps, 0.0), 1.0)
        if self.curve == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return (1 - progress) * self.start + progress * self.end

    def count(self, step: int, total: int) -> int:
        """The share at a step as a number of ``total`` negatives, at least one."""
        return max(1, min(total, round(self.value(step) * total)))
