"""The training loop: two views of each image, one loss, one checkpoint an epoch."""

import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.common import checkpoint
from examples.common.fingerprint import fingerprint
from examples.common.guards import check_finite, check_finite_weights
from examples.common.images.augment import make_augmentation
from examples.common.images.collapse import embedding_health, warning
from examples.common.images.config import ImageConfig
from examples.common.images.data import as_float
from examples.common.images.groups import Partners
from examples.common.images.networks import Tower
from examples.common.images.optim import make_optimizer, make_scheduler
from examples.common.ranks import ALONE, Ranks
from examples.common.run import TrainingRun

Monitor = Callable[[Tower], dict[str, float]]
Log = Callable[[int, dict[str, float]], None]  # step, values by name


class Trainer(TrainingRun):
    """A run that can be saved and resumed between any two epochs.

    Args:
        config: The settings of the run.
        images: Unlabelled training images, shape [N, C, H, W].
        groups: Shape [N] int64, or None. The second view of an image is then made from another
            image of its group, and images of one group are no negatives of each other.
        ranks: This process among those that share the batches. Each draws the whole batch, order
            and views, from one seed, and encodes its own part of it.
    """

    def __init__(
        self,
        config: ImageConfig,
        images: Tensor,
        groups: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        steps = len(images) // config.batch_size  # the incomplete batch is left
        if steps == 0:
            raise ValueError(f"batch_size {config.batch_size} exceeds {len(images)} images")
        super().__init__(config, steps, ranks)
        self.images = images
        self.groups = groups
        self.fingerprint = fingerprint([images, groups])
        self.partners = None if groups is None else Partners(groups)
        self.model = self.untrained()
        self.compute = ranks.wrap(self._computed())
        self.augmentation = make_augmentation(config.data, config.image_size)
        self.optimizer = make_optimizer(self.model, config)
        self.scheduler = make_scheduler(self.optimizer, self.total_steps, config.warmup)
        self.embeddings: tuple[Tensor, Tensor] | None = None  # both views' [n, D], of the last step

    @abstractmethod
    def untrained(self) -> Any:
        """The model as training begins: always the same weights for the same seed."""

    def _computed(self) -> nn.Module:
        """What a step calls: several processes share its gradients."""
        return self.model

    @abstractmethod
    def _loss(self, view_0: Tensor, view_1: Tensor, chosen: Tensor) -> Tensor:
        """The loss of two views [n, C, H, W] of the images ``chosen``, this process's part of a
        batch; sets ``embeddings``.
        """

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def train_epoch(self, after_step: Callable[[float], Any] = lambda loss: None) -> None:
        """One pass over the images in a new order."""
        began = time.perf_counter()
        self.model.train()
        rate, total = self.rate, 0.0
        order = torch.randperm(len(self.images), generator=self.order)
        batches = order.split(self.config.batch_size)[: self.steps]
        for chosen in batches:
            loss = self.train_step(chosen)
            total += loss
            after_step(loss)
        check_finite_weights(self.model, self.scheduler.last_epoch, batches[-1], self.saved)
        assert self.embeddings is not None
        health = embedding_health(*self.embeddings)
        self.history.append({"loss": total / self.steps, "learning_rate": rate, **health})
        self.seconds += time.perf_counter() - began

    def train_step(self, chosen: Tensor) -> float:
        """One step on the images ``chosen`` (indices, shape [batch_size]); returns the loss.

        Raises:
            NonFiniteLoss: The loss is not finite; the weights are as before.
        """
        step = self.scheduler.last_epoch + 1
        loss = self._backward(chosen)
        check_finite(loss, step, chosen, self.saved)
        self.optimizer.step()
        self.scheduler.step()
        return loss

    def _backward(self, chosen: Tensor) -> float:
        """The loss of one batch; its gradients are left in ``.grad``."""
        view_0, view_1 = self._views(chosen)
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self._loss(view_0, view_1, chosen[self.own])
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def _views(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        others = chosen if self.partners is None else self.partners.draw(chosen)
        first, second = (as_float(self.images[which].to(self.device)) for which in (chosen, others))
        return self.augmentation(first)[self.own], self.augmentation(second)[self.own]

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "training_images": list(self.images.shape),
            "images_sha256": self.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"random": checkpoint.random_state(self.device)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        checkpoint.set_random_state(self.device, state["random"])

    def disk_bytes(self) -> int:
        """Room for two checkpoints, the old and the new, and for the report."""
        weights = sum(weight.nbytes for weight in self.model.state_dict().values())
        return 2 * 3 * weights + 2**24  # AdamW keeps two numbers for each weight

    def run(
        self,
        path: Path,
        *,
        monitor: Monitor | None = None,
        every: int = 1,
        log: Log = lambda step, values: None,
    ) -> None:
        """Trains to the last epoch; the first process writes a checkpoint at ``path`` after each.

        Args:
            path: The checkpoint.
            monitor: Called with the model every ``every`` epochs; its numbers join the history.
            every: Epochs.
            log: Called with loss and learning rate of each step, and with an epoch's numbers.
        """
        config = self.config
        remaining = config.epochs - self.epoch
        bar = self._bar()

        def after_step(loss: float) -> None:
            self._show(bar, loss)
            log(self.scheduler.last_epoch, {"step/loss": loss, "step/learning_rate": self.rate})

        warned = False
        with bar:
            for _ in range(remaining):
                self.train_epoch(after_step)
                if monitor is not None and (self.epoch % every == 0 or self.epoch == config.epochs):
                    self.history[-1] |= monitor(self.model)
                done = self.epoch * self.steps
                log(done, {f"epoch/{name}": value for name, value in self.history[-1].items()})
                trouble = self._trouble() if self.ranks.first else None
                if trouble and not warned and self.epoch > config.warmup * config.epochs:
                    bar.write(f"warning: after epoch {self.epoch} {trouble}", file=sys.stderr)
                    warned = True
                self._save(path)

    def _trouble(self) -> str | None:
        """What is wrong with the embeddings of the epoch's last batch, if anything."""
        assert self.embeddings is not None
        return warning(self.history[-1], self.embeddings[0].shape[1])
