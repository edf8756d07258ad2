"""Methods that keep networks, or keys, from one step to the next."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from examples.common.images.networks import Tower
from examples.common.images.train import Trainer


class Views(NamedTuple):
    """A batch."""

    first: Tensor  # [B, C, H, W]
    second: Tensor  # [B, C, H, W]
    ids: Tensor  # [B] int64: images that show the same thing share one
    labels: Tensor | None = None  # [B] int64, where a method is supervised


class Learner(Tower, ABC):
    """A tower with a method's loss, further networks, and what it keeps."""

    @abstractmethod
    def loss(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The loss of a batch, and the embeddings [B, D] of both views, to be watched."""

    def after_step(self) -> None:
        """The optimizer has taken the step of the last loss."""


class LossOf(nn.Module):
    """A learner's loss as a module, which several processes can share."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, views: Views) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.learner.loss(views)


class LearnerTrainer(Trainer):
    """Trains a ``Learner``."""

    model: Learner
    labels: Tensor | None = None  # [N] int64, of the training images

    @abstractmethod
    def untrained(self) -> Learner: ...

    def _computed(self) -> nn.Module:
        return LossOf(self.model)

    def train_step(self, chosen: Tensor) -> float:
        loss = super().train_step(chosen)
        self.model.after_step()
        return loss

    def _loss(self, view_0: Tensor, view_1: Tensor, chosen: Tensor) -> Tensor:
        ids = chosen if self.groups is None else self.groups[chosen]
        labels = None if self.labels is None else self.labels[chosen].to(self.device)
        views = Views(view_0, view_1, ids.to(self.device), labels)
        loss, (first, second) = self.compute(views)
        self.embeddings = first.detach(), second.detach()
        return loss
