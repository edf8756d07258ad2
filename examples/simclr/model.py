"""The encoder and the projection head that only training uses."""

import torch
from torch import Tensor, nn

from examples.simclr.config import Config
from examples.simclr.encoders import make_encoder


def make_model(config: Config, channels: int) -> "SimCLR":
    """The untrained model: always the same weights for the same seed."""
    torch.manual_seed(config.seed)
    return SimCLR(make_encoder(config, channels), config.projection, config.norm).to(config.device)


class SimCLR(nn.Module):
    """``encoder`` is what training is for; ``head`` is dropped afterwards."""

    def __init__(self, encoder: nn.Module, projection: int, norm: str = "batch") -> None:
        super().__init__()
        self.encoder = encoder
        features = int(encoder.features)  # type: ignore[arg-type]
        self.head = nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features) if norm == "batch" else nn.LayerNorm(features),
            nn.ReLU(),
            nn.Linear(features, projection),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings for the loss, shape [N, projection]."""
        return self.head(self.encoder(images))
