"""The training loop: one loss of all processes' pairs, one checkpoint an epoch."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cl_kernels import grad_cache_step
from examples.clip.augment import augment, draw
from examples.clip.config import Config
from examples.clip.data import Data
from examples.clip.model import Clip, make_model
from examples.common.fingerprint import fingerprint
from examples.common.guards import check_finite, check_finite_weights
from examples.common.images.optim import make_scheduler
from examples.common.ranks import ALONE, Ranks
from examples.common.run import TrainingRun

SCALE_RATE = 0.2  # of the towers' learning rate: else the softmax is sharp before they are good


class Trainer(TrainingRun):
    """A run of both towers: with any number of processes the same, but for rounding.

    Args:
        config: The settings of the run.
        data: Pictures and their names.
        ranks: This process among those that share the batches.
    """

    kind = "CLIP"
    config: Config

    def __init__(self, config: Config, data: Data, ranks: Ranks = ALONE) -> None:
        pictures = data.of("train")
        steps = len(pictures.pixels) // config.batch_size  # the rest is left
        if steps == 0:
            raise ValueError(
                f"batch_size: expected at most the {len(pictures.pixels)} training pictures, "
                f"got {config.batch_size}"
            )
        super().__init__(config, steps, ranks)
        self.pictures = pictures
        self.names, self.groups = data.names(data.known()), data.glyphs.groups
        self.fingerprint = fingerprint([*pictures, *self.names, self.groups])
        self.model = make_model(config, self.names)
        self.ids = self.model.text.vocabulary.ids(data.glyphs.names)  # [C, L]
        self.towers = [ranks.wrap(self.model.image), ranks.wrap(self.model.text)]
        self.contrast = ranks.wrap(self.model.contrast)
        self.optimizer = make_optimizer(self.model, config)
        self.scheduler = make_scheduler(self.optimizer, config.epochs * steps, config.warmup)
        self.losses: list[float] = []  # of each step

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

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "training_pictures": len(self.pictures.pixels),
            "pictures_sha256": self.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.losses = list(state["losses"])

    def disk_bytes(self) -> int:
        """Room for two checkpoints, the old and the new, and for what is exported."""
        weights = sum(weight.nbytes for weight in self.model.state_dict().values())
        return (2 * 3 + 1) * weights + 2**27  # AdamW keeps two numbers for each weight


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
