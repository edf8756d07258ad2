"""What every training run is, whatever it trains."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from examples.common import checkpoint
from examples.common.ranks import Ranks


class TrainingRun(ABC):
    """Epochs, between any two of which it can be saved and resumed, on one process or several.

    Every process draws the whole batch from one seed and encodes its own part of it.

    Args:
        config: The settings of the run.
        steps: Of an epoch.
        ranks: This process among those that share the batches.
    """

    kind: str  # of its checkpoints
    trained = "model"  # the attribute that is trained, and its name in checkpoints
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler

    def __init__(self, config: Any, steps: int, ranks: Ranks) -> None:
        self.config, self.steps, self.ranks = config, steps, ranks
        self.own = ranks.part(config.batch_size)
        self.device = torch.device(config.device)
        self.order = torch.Generator().manual_seed(config.seed)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.saved: Path | None = None  # the last good checkpoint

    @abstractmethod
    def train_epoch(self, after_step: Callable[[float], Any] = lambda loss: None) -> None:
        """One pass over the data in a new order; calls ``after_step`` with each loss."""

    @abstractmethod
    def disk_bytes(self) -> int:
        """What the run writes, at most."""

    @property
    def epochs(self) -> int:
        """Of the whole run."""
        return self.config.epochs

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def settings(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        return {**asdict(self.config), "processes": self.ranks.size}  # others round differently

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, in types that ``weights_only=True`` reads."""
        return {
            "kind": self.kind,
            "settings": self.settings(),
            self.trained: getattr(self, self.trained).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order.get_state(),
            "history": self.history,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where ``state_dict`` was taken."""
        getattr(self, self.trained).load_state_dict(state[self.trained])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order.set_state(state["order"])
        self.history = list(state["history"])
        self.seconds = state["seconds"]

    def resume(self, path: Path) -> None:
        """Loads the checkpoint at ``path``, if it belongs to this run."""
        checkpoint.resume(path, self)
        self.saved = path

    def run(self, path: Path) -> None:
        """Trains to the last epoch; the first process writes ``path``, a checkpoint, after each."""
        with self._bar() as bar:
            while self.epoch < self.epochs:
                self.train_epoch(lambda loss: self._show(bar, loss))
                self._save(path)

    def _save(self, path: Path) -> None:
        if self.ranks.first:
            checkpoint.save(path, self.state_dict())
        self.saved = path

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.epochs * self.steps,
            initial=self.epoch * self.steps,
            desc="training",
            unit="step",
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            disable=self.epoch == self.epochs or not self.ranks.first,
        )

    def _show(self, bar: tqdm, loss: float) -> None:
        bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss:.3f}", refresh=False)
        bar.update()

    def _autocast(self) -> torch.autocast:
        # bfloat16 has float32's range: no gradient scaler is needed.
        mixed = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)
