"""Random views of pictures: another place, size, slant, bend and weight of the pen, and noise."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.6  # pixels
SCALE = 0.05  # each axis by a factor of exp(-this) to exp(this)
SLANT = 0.06
TURN = 0.02  # radians
WEIGHT = 0.2  # of the way to a pen that is a pixel thinner or bolder on each side
BEND = 0.6  # pixels: how far points of a grid of KNOTS x KNOTS move, standard deviation
KNOTS = 5
NOISE = 0.025  # standard deviation, of pixels in [0, 1]


class Draws(NamedTuple):
    """Random numbers for B pictures."""

    places: Tensor  # [B, 7], uniform in [-1, 1]
    bends: Tensor  # [B, 2, KNOTS, KNOTS], standard normal
    noise: Tensor  # [B, 1, H, W], standard normal

    def part(self, rows: slice) -> "Draws":
        """Those of some of the pictures."""
        return Draws(*(x[rows] for x in self))


def draw(count: int, size: int, generator: torch.Generator) -> Draws:
    """Numbers for ``count`` pictures of ``size`` pixels a side."""
    places = torch.rand(count, 7, generator=generator) * 2 - 1
    bends = torch.randn(count, 2, KNOTS, KNOTS, generator=generator)
    return Draws(places, bends, torch.randn(count, 1, size, size, generator=generator))


def augment(pixels: Tensor, draws: Draws) -> Tensor:
    """Views [n, 1, H, W] in about [0, 1] of pictures [n, H, W] uint8."""
    places, bends, noise = (x.to(pixels.device) for x in draws)
    views, size = as_float(pixels), pixels.shape[-1]
    grid = F.affine_grid(_affine(places[:, :6], size), list(views.shape), align_corners=False)
    bends = F.interpolate(bends * (2 * BEND / size), (size, size), mode="bilinear")
    grid = grid + bends.permute(0, 2, 3, 1)
    views = F.grid_sample(views, grid, align_corners=False)
    weight = WEIGHT * places[:, 6].view(-1, 1, 1, 1)
    bold, thin = F.max_pool2d(views, 3, 1, 1), -F.max_pool2d(-views, 3, 1, 1)
    views = torch.lerp(views, torch.where(weight > 0, bold, thin), weight.abs())
    return views + NOISE * noise


def as_float(pixels: Tensor) -> Tensor:
    """Pictures [n, 1, H, W] in [0, 1] of pixels [n, H, W] uint8."""
    return pixels[:, None].float() / 255


def _affine(places: Tensor, size: int) -> Tensor:
    """Matrices [n, 2, 3] to the place in a picture from the place in its view."""
    across, down, wide, high, slant, turn = places.unbind(1)
    cos, sin = (TURN * turn).cos(), (TURN * turn).sin()
    wide, high, slant = (SCALE * wide).exp(), (SCALE * high).exp(), SLANT * slant
    shift = 2 * SHIFT / size
    rows = [
        torch.stack([wide * cos, wide * (slant * cos - sin), shift * across], 1),
        torch.stack([high * sin, high * (slant * sin + cos), shift * down], 1),
    ]
    return torch.stack(rows, 1)
