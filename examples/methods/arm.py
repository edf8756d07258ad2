"""A run of one method, in a process of its own unless it is quick.

``python -m examples.methods.arm JOB`` prints one JSON object; JOB is JSON as ``run`` takes it.
"""

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from examples.common.device import describe
from examples.common.images.data import Images, load
from examples.common.images.memory import PeakMemory, freed_at_once
from examples.common.lock import hold
from examples.common.process import answer
from examples.methods.config import Config
from examples.methods.scores import health, score
from examples.methods.train import Trainer

WARM_UP = 32  # pairs
PROBE_STEPS = 3  # the optimizer has its own after the first


class Stopwatch:
    """Seconds between the steps that a run logs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def __call__(self, step: int, values: dict[str, float]) -> None:
        now = time.perf_counter()
        if "step/loss" not in values:  # an epoch's end takes longer than a step
            self._last = None
            return
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def run(config: dict[str, Any], out: str) -> dict[str, Any]:
    """Trains with the settings ``config``, or goes on, in the folder ``out``, and scores."""
    settings = Config(**config)
    images = load(settings.data, None, settings.image_size)
    memory = peak_memory(settings, images)
    trainer, watch = Trainer(settings, images), Stopwatch()
    before = score(trainer.model, images)
    path = Path(out, "checkpoint.pt")
    with hold(path.parent):
        if path.exists():
            trainer.resume(path)
        trainer.run(path, log=watch)
    mean = trainer.seconds / trainer.total_steps  # where all steps were taken before
    return {
        "settings": trainer.settings(),
        "scores": score(trainer.model, images),
        "untrained": before,
        "peak_bytes": memory,
        "seconds_a_step": median(watch.seconds) if watch.seconds else mean,
        "steps": trainer.total_steps,
        "health": health(trainer.model, images, trainer.augmentation),
        "history": trainer.history,
        "machine": describe(trainer.device),
    }


@freed_at_once()
def peak_memory(settings: Config, images: Images) -> int | None:
    """What some steps hold at most, with weights and the optimizer; None without ``/proc``."""
    # A small step loads libraries and starts threads; memory is counted from there.
    small = replace(settings, batch_size=min(WARM_UP, len(images.train)))
    Trainer(small, images).train_step(torch.arange(small.batch_size))
    try:
        memory = PeakMemory(settings.device)
    except OSError:
        return None
    trainer = Trainer(settings, images)
    for _ in range(PROBE_STEPS):
        trainer.train_step(torch.arange(settings.batch_size))
    return memory.bytes()


if __name__ == "__main__":
    answer(run)
