"""A small residual encoder and the projection head that only training uses."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2015)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm_0 = nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm_0(self.conv_0(x)))
        return F.relu(self.norm_1(self.conv_1(inner)) + self.shortcut(x))


class Encoder(nn.Module):
    """Images [N, C, H, W] to features [N, features]; each stage after the first halves H and W."""

    def __init__(self, channels: int, width: int, stages: int) -> None:
        super().__init__()
        self.features = width * 2 ** (stages - 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width * 2**stage for stage in range(stages)]
        self.blocks = nn.Sequential(
            *(
                Block(widths[max(stage - 1, 0)], widths[stage], stride=1 if stage == 0 else 2)
                for stage in range(stages)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean(dim=(2, 3))


class SimCLR(nn.Module):
    """``encoder`` is what training is for; ``head`` is dropped afterwards."""

    def __init__(self, channels: int, width: int, stages: int, projection: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, stages)
        features = self.encoder.features
        self.head = nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(),
            nn.Linear(features, projection),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings for the loss, shape [N, projection]."""
        return self.head(self.encoder(images))
