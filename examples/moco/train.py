"""MoCo's runs."""

import math

import torch

from cl_kernels.memory import Queue, cosine_momentum
from examples.common.images.encoders import make_encoder
from examples.common.images.learner import LearnerTrainer
from examples.common.images.memory import LossFacts, LossSize
from examples.common.images.networks import features_of
from examples.moco.config import Config
from examples.moco.model import MoCoV2, MoCoV3, v2_head, v3_heads


class Trainer(LearnerTrainer):
    """A run of v2 or v3."""

    kind = "MoCo"
    config: Config

    def untrained(self) -> MoCoV2 | MoCoV3:
        config = self.config
        torch.manual_seed(config.seed)
        encoder = make_encoder(config, self.images.shape[1])
        features = features_of(encoder)
        if config.version == "v2":
            head = v2_head(features, config.projection)
            queue = Queue(config.queue, config.projection, labels=True)
            model = MoCoV2(
                encoder, head, config.momentum, queue, config.temperature, config.key_parts
            )
        else:
            head, predictor = v3_heads(features, config.projection, config.norm)
            momentum = cosine_momentum(config.momentum, self.total_steps)
            model = MoCoV3(encoder, head, predictor, momentum, config.temperature)
        return model.to(self.device)


def loss_facts(config: Config, large: int) -> LossFacts:
    """Of a run with these settings, and of ``large`` pairs a batch."""
    if config.version == "v2":
        # Of 16,384 pairs 65,536 keys: the paper's queue.
        keys = {config.batch_size: config.queue, large: 4 * large}
        loss, name, all_alike = "queue", "InfoNCE", math.log(1 + config.queue)
    else:
        keys = {pairs: pairs for pairs in (config.batch_size, large)}
        loss, name = "keys", "2 T (InfoNCE of both views)"
        all_alike = 4 * config.temperature * math.log(config.batch_size)
    sizes = [
        LossSize(loss, pairs, pairs, count, config.projection, config.temperature)
        for pairs, count in keys.items()
    ]
    return LossFacts(name, all_alike, sizes)
