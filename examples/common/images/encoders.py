"""Encoders: images [N, C, H, W] to features [N, features]."""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.images.config import ImageConfig
from examples.common.images.vision import import_torchvision

CIFAR_STEM_UP_TO = 64  # pixels a side; the paper's CIFAR-10 encoder keeps small images large (B.9)


def make_encoder(config: ImageConfig, channels: int) -> nn.Module:
    """The encoder that ``config`` names; ``features`` is the width of what it gives.

    Raises:
        ImportError: A ResNet was asked for, and neither torchvision nor timm can be imported.
    """
    if config.encoder == "small":
        return Encoder(channels, config.width, config.stages, config.norm)
    return _resnet(config, channels)


def norm_2d(kind: str, channels: int) -> nn.Module:
    """Batch norm, or group norm in groups of about 8 channels, which sees one image at a time."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 8)), channels)


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2015)."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv_0 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm_0 = norm_2d(norm, channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_1 = norm_2d(norm, channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(norm_2d(norm, channels))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm_0(self.conv_0(x)))
        return F.relu(self.norm_1(self.conv_1(inner)) + self.shortcut(x))


class Encoder(nn.Module):
    """A small residual network; each stage after the first halves H and W."""

    def __init__(self, channels: int, width: int, stages: int, norm: str = "batch") -> None:
        super().__init__()
        self.features = width * 2 ** (stages - 1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), norm_2d(norm, width), nn.ReLU()
        )
        widths = [width * 2**stage for stage in range(stages)]
        self.blocks = nn.Sequential(
            *(
                Block(widths[max(stage - 1, 0)], widths[stage], 1 if stage == 0 else 2, norm)
                for stage in range(stages)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean(dim=(2, 3))


def _resnet(config: ImageConfig, channels: int) -> nn.Module:
    def norm(width: int, **_: Any) -> nn.Module:  # timm adds device and dtype, both None
        return norm_2d(config.norm, width)

    model: Any
    try:
        models = import_torchvision().models
        model = getattr(models, config.encoder)(norm_layer=norm)
    except ImportError as torchvision_error:
        try:
            import timm
        except (ImportError, RuntimeError) as timm_error:
            raise ImportError(
                f"encoder {config.encoder} is torchvision's or timm's, and neither can be "
                f"imported ({torchvision_error}; {timm_error}); `pip install torchvision`, or use "
                "--encoder small"
            ) from timm_error
        model = timm.create_model(config.encoder, norm_layer=norm)
    model.features = model.fc.in_features
    model.fc = nn.Identity()
    if config.image_size <= CIFAR_STEM_UP_TO:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
    return model
