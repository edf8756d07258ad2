"""The training loop: two views of each image, one loss, one checkpoint an epoch."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from tqdm import tqdm

from cl_kernels import NTXentLoss
from examples.simclr import checkpoint
from examples.simclr.augment import make_augmentation
from examples.simclr.config import Config
from examples.simclr.data import as_float
from examples.simclr.model import SimCLR


def make_model(config: Config, channels: int) -> SimCLR:
    """The untrained model: always the same weights for the same seed."""
    torch.manual_seed(config.seed)
    model = SimCLR(channels, config.width, config.stages, config.projection)
    return model.to(config.device)


class Trainer:
    """A run that can be saved and resumed between any two epochs.

    Args:
        config: The settings of the run.
        images: Unlabelled training images, shape [N, C, H, W].
    """

    def __init__(self, config: Config, images: Tensor) -> None:
        self.steps = len(images) // config.batch_size  # an epoch's; the incomplete batch is left
        if self.steps == 0:
            raise ValueError(f"batch_size {config.batch_size} exceeds {len(images)} images")
        self.config = config
        self.images = images
        self.device = torch.device(config.device)
        self.model = make_model(config, images.shape[1])
        self.augmentation = make_augmentation(config.data, config.image_size)
        self.loss = NTXentLoss(temperature=config.temperature)
        self.optimizer = _optimizer(self.model, config)
        self.scheduler = _scheduler(self.optimizer, config.epochs * self.steps, config.warmup)
        self.order = torch.Generator().manual_seed(config.seed)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def train_epoch(self, after_step: Callable[[float], Any] = lambda loss: None) -> None:
        """One pass over the images in a new order."""
        began = time.perf_counter()
        self.model.train()
        rate = float(self.scheduler.get_last_lr()[0])
        total = 0.0
        order = torch.randperm(len(self.images), generator=self.order)
        for chosen in order.split(self.config.batch_size)[: self.steps]:
            loss = self._step(as_float(self.images[chosen].to(self.device)))
            if not loss < float("inf"):
                raise FloatingPointError(f"the loss is {loss} in epoch {self.epoch + 1}")
            total += loss
            after_step(loss)
        self.history.append({"loss": total / self.steps, "learning_rate": rate})
        self.seconds += time.perf_counter() - began

    def _step(self, images: Tensor) -> float:
        with torch.no_grad():
            views = torch.cat([self.augmentation(images), self.augmentation(images)])
        with self._autocast():
            # One batch of 2N, so that batch norm sees both views.
            view_0, view_1 = self.model(views).chunk(2)
            loss = self.loss(view_0, view_1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def _autocast(self) -> torch.autocast:
        # bfloat16 has float32's range: no gradient scaler is needed.
        mixed = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def settings(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        return {**asdict(self.config), "training_images": list(self.images.shape)}

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, in types that ``weights_only=True`` reads."""
        return {
            "settings": self.settings(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order.get_state(),
            "random": checkpoint.random_state(self.device),
            "history": self.history,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order.set_state(state["order"])
        self.history = list(state["history"])
        self.seconds = state["seconds"]
        checkpoint.set_random_state(self.device, state["random"])

    def resume(self, path: Path) -> None:
        """Loads the checkpoint at ``path``, if it belongs to this run."""
        state = checkpoint.load(path)
        checkpoint.check_same(path, state["settings"], self.settings())
        self.load_state_dict(state)

    def run(self, path: Path) -> None:
        """Trains to the last epoch, with a checkpoint at ``path`` after each."""
        remaining = self.config.epochs - self.epoch
        bar = tqdm(
            total=self.config.epochs * self.steps,
            initial=self.epoch * self.steps,
            desc="training",
            unit="step",
            mininterval=0.2 if sys.stderr.isatty() else 10.0,
            disable=remaining == 0,
        )

        def after_step(loss: float) -> None:
            bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss:.3f}", refresh=False)
            bar.update()

        with bar:
            for _ in range(remaining):
                self.train_epoch(after_step)
                checkpoint.save(path, self.state_dict())


def _optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _scheduler(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> SequentialLR:
    """Linear warm-up, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    schedules = [
        LinearLR(optimizer, start_factor=1 / rising, total_iters=rising),
        CosineAnnealingLR(optimizer, T_max=max(1, steps - rising)),
    ]
    return SequentialLR(optimizer, schedules, milestones=[rising])
