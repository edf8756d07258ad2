"""Random views of an image. Every draw comes from torch's global generator."""

from collections.abc import Sequence

import kornia.augmentation as K
from torch import nn

BLUR_FROM = 64  # pixels a side; on smaller images the paper leaves the blur out (its B.9)


def make_augmentation(data: str, image_size: int) -> nn.Module:
    """A module that maps images [N, C, H, W] in [0, 1] to views of the same shape."""
    views = {"digits": _pen_strokes, "glyphs": _print}.get(data)
    return nn.Sequential(*(views() if views else _natural(image_size)))


def _pen_strokes() -> Sequence[nn.Module]:
    """Another hand, another pen. No flips: a mirrored digit is another sign, or none."""
    return [
        K.RandomAffine(
            degrees=10.0,
            translate=(0.1, 0.1),
            scale=(0.85, 1.15),
            shear=10.0,
            p=1.0,
        ),
        K.ColorJitter(brightness=0.4, contrast=0.4, p=1.0),
        K.RandomGaussianNoise(std=0.2, p=0.5),
        K.RandomErasing(scale=(0.02, 0.25), ratio=(0.5, 2.0), p=0.5),
    ]


def _print() -> Sequence[nn.Module]:
    """The fonts differ enough: a little of place, size and slant."""
    return [K.RandomAffine(degrees=5.0, translate=(0.05, 0.05), scale=(0.9, 1.1), shear=5.0, p=1.0)]


def _natural(image_size: int) -> list[nn.Module]:
    """Crop, flip and colour of the SimCLR paper (appendix A), at its strength for CIFAR-10."""
    views: list[nn.Module] = [
        K.RandomResizedCrop((image_size, image_size), scale=(0.2, 1.0), p=1.0),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
    ]
    if image_size >= BLUR_FROM:
        kernel = image_size // 10 // 2 * 2 + 1  # odd, a tenth of the side
        views.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    return views
