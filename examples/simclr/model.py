"""The encoder and the projection head that only training uses."""

import torch

from examples.common.images.encoders import make_encoder
from examples.common.images.networks import Tower, features_of, mlp
from examples.simclr.config import Config


def make_model(config: Config, channels: int) -> Tower:
    """The untrained model: always the same weights for the same seed."""
    torch.manual_seed(config.seed)
    encoder = make_encoder(config, channels)
    features = features_of(encoder)
    return Tower(encoder, mlp((features, features, config.projection), config.norm)).to(
        config.device
    )
