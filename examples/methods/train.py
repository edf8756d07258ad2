"""One training loop for every method."""

from dataclasses import asdict
from typing import Any

import torch

from examples.common.images.data import Images
from examples.common.images.encoders import make_encoder
from examples.common.images.learner import Learner, LearnerTrainer
from examples.methods.catalogue import METHODS
from examples.methods.config import Config
from examples.methods.learners import make_learner


class Trainer(LearnerTrainer):
    """A run of one method; all begin with the same encoder and see the same views."""

    kind = "method"
    config: Config

    def __init__(self, config: Config, data: Images) -> None:
        super().__init__(config, data.train, data.train_groups)
        self.method = METHODS[config.method]
        self.labels = data.train_labels if self.method.supervised else None

    def untrained(self) -> Learner:
        config = self.config
        torch.manual_seed(config.seed)
        encoder = make_encoder(config, self.images.shape[1])
        learner = make_learner(config, encoder, self.total_steps).to(self.device)
        torch.manual_seed(config.seed + 1)  # whatever the heads have drawn
        return learner

    def settings(self) -> dict[str, Any]:
        return super().settings() | {f"method_{k}": v for k, v in asdict(self.method).items()}
