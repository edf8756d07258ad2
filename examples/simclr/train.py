"""SimCLR's step, with and without chunks."""

import math

import torch
from torch import Tensor

from cl_kernels import GradCache
from examples.common.images.memory import LossFacts, LossSize
from examples.common.images.networks import Tower
from examples.common.images.train import Trainer as ImageTrainer
from examples.common.ranks import ALONE, Ranks
from examples.simclr.config import Config
from examples.simclr.loss import make_loss
from examples.simclr.model import make_model


class Trainer(ImageTrainer):
    """A run that can be saved and resumed between any two epochs.

    Args:
        config: The settings of the run.
        images: Unlabelled training images, shape [N, C, H, W].
        groups: Shape [N] int64, or None. The second view of an image is then made from another
            image of its group, and images of one group are no negatives of each other.
        ranks: This process among those that share the batches.
    """

    kind = "SimCLR"
    config: Config

    def __init__(
        self,
        config: Config,
        images: Tensor,
        groups: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if config.loss == "eager" and ranks.size > 1:
            raise ValueError(f"loss: expected cl_kernels with {ranks.size} processes, got eager")
        super().__init__(config, images, groups, ranks)
        self.loss = make_loss(config.loss, config.temperature)
        self.cache = GradCache(self.compute, self._contrast, chunk_size=config.chunk or len(images))

    def untrained(self) -> Tower:
        return make_model(self.config, self.images.shape[1])

    def _backward(self, chosen: Tensor) -> float:
        if not self.config.chunk:
            return super()._backward(chosen)
        view_0, view_1 = self._views(chosen)
        self.optimizer.zero_grad()
        try:
            with self._autocast():
                return self.cache.step(view_0, view_1, groups=self._groups(chosen[self.own])).item()
        except FloatingPointError:
            return math.nan

    def _loss(self, view_0: Tensor, view_1: Tensor, chosen: Tensor) -> Tensor:
        # One batch of 2N, so that batch norm sees both views.
        view_0, view_1 = self.compute(torch.cat([view_0, view_1])).chunk(2)
        return self._contrast(view_0, view_1, self._groups(chosen))

    def _contrast(self, view_0: Tensor, view_1: Tensor, groups: Tensor | None) -> Tensor:
        self.embeddings = view_0.detach(), view_1.detach()
        return self.loss(view_0, view_1, groups)

    def _groups(self, chosen: Tensor) -> Tensor | None:
        return None if self.groups is None else self.groups[chosen].to(self.device)


def loss_facts(config: Config, large: int) -> LossFacts:
    """Of a run with these settings, and of ``large`` pairs a batch."""
    sizes = [
        LossSize("nt_xent", pairs, 2 * pairs, 2 * pairs, config.projection, config.temperature)
        for pairs in (config.batch_size, large)
    ]
    return LossFacts("NT-Xent", math.log(2 * config.batch_size - 1), sizes)
