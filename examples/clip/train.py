"""The training loop: one loss of all processes' pairs, one checkpoint an epoch."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cl_kernels import grad_cache_step
from examples.clip.augment import augment, draw
from examples.clip.config import Config
from examples.clip.data import Data
from examples.clip.model import Clip, make_model
from examples.common import checkpoint
from examples.common.fingerprint import fingerprint
from examples.common.guards import check_finite, check_finite_weights
from examples.common.images.optim import make_scheduler
from examples.common.ranks import ALONE, Ranks

SCALE_RATE = 0.2  # of the towers' learning rate: else the softmax is sharp before they are good


class Trainer:
    """A run that can be saved and resumed between any two epochs.

    Every process draws the whole batch, order and views, from one seed and encodes its own part of
    it: with any number of processes training is the same, but for rounding.

    Args:
        config: The settings of the run.
        data: Pictures and their names.
        ranks: This process among those that share the batches.
    """

    kind = "CLIP"  # of its checkpoints

    def __init__(self, config: Config, data: Data, ranks: Ranks = ALONE) -> None:
        pictures = data.of("train")
        self.steps = len(pictures.pixels) // config.batch_size  # an epoch's; the rest is left
        if self.steps == 0:
            raise ValueError(
                f"batch_size: expected at most the {len(pictures.pixels)} training pictures, "
                f"got {config.batch_size}"
            )
        self.own = ranks.part(config.batch_size)
        self.config, self.ranks, self.pictures = config, ranks, pictures
        self.names, self.groups = data.names(data.known()), data.glyphs.groups
        self.fingerprint = fingerprint([*pictures, *self.names, self.groups])
        self.device = torch.device(config.device)
        self.model = make_model(config, self.names)
        self.ids = self.model.text.vocabulary.ids(data.glyphs.names)  # [C, L]
        self.towers = [ranks.wrap(self.model.image), ranks.wrap(self.model.text)]
        self.contrast = ranks.wrap(self.model.contrast)
        self.optimizer = make_optimizer(self.model, config)
        self.scheduler = make_scheduler(self.optimizer, config.epochs * self.steps, config.warmup)
        self.order = torch.Generator().manual_seed(config.seed)
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []  # of each step
        self.seconds = 0.0
        self.saved: Path | None = None  # the last good checkpoint

    @property
    def epochs(self) -> int:
        """Of the whole run."""
        return self.config.epochs

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history)

    def train_epoch(self, after_step: Callable[[float], Any] = lambda loss: None) -> None:
        """One pass over the pictures in a new order."""
        began = time.perf_counter()
        rate = float(self.scheduler.get_last_lr()[0])
        self.model.train()
        order = torch.randperm(len(self.pictures.pixels), generator=self.order)
        batches = order.split(self.config.batch_size)[: self.steps]
        losses = []
        for chosen in batches:
            losses.append(self.train_step(chosen))
            after_step(losses[-1])
        check_finite_weights(self.model, self.scheduler.last_epoch, batches[-1], self.saved)
        scale = self.model.contrast.log_scale.exp().item()
        numbers = {"loss": sum(losses) / self.steps, "learning_rate": rate, "scale": scale}
        if self.model.contrast.bias is not None:
            numbers["bias"] = self.model.contrast.bias.item()
        self.losses += losses
        self.seconds += time.perf_counter() - began
        self.history.append(numbers)

    def train_step(self, chosen: Tensor) -> float:
        """One step on the pictures ``chosen`` [batch_size]; returns the loss of all processes.

        Raises:
            NonFiniteLoss: The loss is not finite; the weights are as before.
        """
        try:
            loss = self.backward(chosen)
        except FloatingPointError:  # from the gradient cache
            loss = math.nan
        check_finite(loss, self.scheduler.last_epoch + 1, chosen, self.saved)
        self.optimizer.step()
        self.scheduler.step()
        self.model.contrast.limit()
        return loss

    def backward(self, chosen: Tensor) -> float:
        """The loss of one batch; its gradients are left in ``.grad``."""
        views, ids, groups = self.inputs(chosen)
        self.optimizer.zero_grad()
        options = {"groups": groups}
        with self._autocast():
            if self.config.chunk:
                return grad_cache_step(
                    self.towers,
                    [views, ids],
                    self.contrast,
                    loss_options=options,
                    chunk_size=self.config.chunk,
                ).item()
            embeddings = [tower(x) for tower, x in zip(self.towers, (views, ids), strict=True)]
            loss = self.contrast(*embeddings, **options)
        loss.backward()
        return loss.item()

    def inputs(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views [n, 1, H, W], ids [n, L] and look-alike groups [n] of this process's part."""
        pixels, characters, _ = self.pictures
        draws = draw(len(chosen), pixels.shape[-1], self.order)
        own = chosen[self.own]
        views = augment(pixels[own].to(self.device), draws.part(self.own))
        if self.config.precision == "float64":
            views = views.double()
        named = characters[own]
        ids, groups = self.ids[named], self.groups[named]
        return views, ids.to(self.device), groups.to(self.device)

    def _autocast(self) -> torch.autocast:
        # bfloat16 has float32's range: no gradient scaler is needed.
        mixed = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed)

    def settings(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be continued."""
        return {
            **asdict(self.config),
            "processes": self.ranks.size,  # others round differently
            "training_pictures": len(self.pictures.pixels),
            "pictures_sha256": self.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, in types that ``weights_only=True`` reads."""
        return {
            "kind": self.kind,
            "settings": self.settings(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.order.get_state(),
            "history": self.history,
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.order.set_state(state["order"])
        self.history, self.losses = list(state["history"]), list(state["losses"])
        self.seconds = state["seconds"]

    def disk_bytes(self) -> int:
        """Room for two checkpoints, the old and the new, and for what is exported."""
        weights = sum(weight.nbytes for weight in self.model.state_dict().values())
        return (2 * 3 + 1) * weights + 2**27  # AdamW keeps two numbers for each weight

    def resume(self, path: Path) -> None:
        """Loads the checkpoint at ``path``, if it belongs to this run."""
        checkpoint.resume(path, self)
        self.saved = path

    def run(self, path: Path) -> None:
        """Trains to the last epoch; the first process writes ``path`` after each."""
        total, done = self.config.epochs * self.steps, self.epoch * self.steps
        silent = done == total or not self.ranks.first
        interval = 0.2 if sys.stderr.isatty() else 10.0
        bar = tqdm(
            total=total,
            initial=done,
            desc="training",
            unit="step",
            mininterval=interval,
            disable=silent,
        )

        def after_step(loss: float) -> None:
            bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss:.3f}", refresh=False)
            bar.update()

        with bar:
            while self.epoch < self.config.epochs:
                self.train_epoch(after_step)
                if self.ranks.first:
                    checkpoint.save(path, self.state_dict())
                self.saved = path


def make_optimizer(model: Clip, config: Config) -> torch.optim.AdamW:
    """Weight decay for matrices and filters only; a slower rate for the scale of the logits."""
    logits = list(model.contrast.parameters())
    weights = [*model.image.parameters(), *model.text.parameters()]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
        {"params": logits, "weight_decay": 0.0, "lr": SCALE_RATE * config.learning_rate},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))
