"""A process of its own for each side of ``--compare``: nobody else has touched its memory.

``python -m examples.simclr.arm JOB`` prints one JSON object; JOB is JSON as ``run`` takes it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.images.data import load
from examples.common.images.memory import PeakMemory
from examples.common.lock import hold
from examples.common.process import answer
from examples.simclr.config import Config
from examples.simclr.train import Trainer

WARM_UP = 32  # pairs
PROBE_STEPS = 4  # memory grows a little after the first


def run(config: dict[str, Any], root: str | None, out: str | None) -> dict[str, Any]:
    """Trains with the settings ``config`` in the folder ``out``; without one, takes some steps."""
    settings = Config(**config)
    images = load(settings.data, Path(root) if root else None, settings.image_size)

    # A small step loads libraries and starts threads; memory is counted from there.
    small = replace(settings, batch_size=min(WARM_UP, len(images.train)))
    Trainer(small, images.train, images.train_groups).train_step(torch.arange(small.batch_size))
    memory = PeakMemory(settings.device)

    trainer = Trainer(settings, images.train, images.train_groups)
    if out is None:
        for _ in range(PROBE_STEPS):
            trainer.train_step(torch.arange(settings.batch_size))
        return {"peak_bytes": memory.bytes()}
    path = Path(out, "checkpoint.pt")
    with hold(path.parent):
        if path.exists():
            trainer.resume(path)
        trainer.run(path)
    steps = settings.epochs * trainer.steps
    return {
        "peak_bytes": memory.bytes(),
        "steps": steps,
        "seconds": trainer.seconds,
        "seconds_a_step": trainer.seconds / steps,
        "final_loss": trainer.history[-1]["loss"],
    }


if __name__ == "__main__":
    answer(run)
