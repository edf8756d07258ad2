"""Pairs of a picture and a name to train on, and what is asked of the towers afterwards."""

from typing import NamedTuple

import torch
from torch import Tensor

from examples.clip.config import Config
from examples.clip.glyphs import Glyphs, render
from examples.clip.splits import Split, split

TESTS = {
    "fonts": "held-out fonts",
    "combinations": "unseen combinations",
    "both": "both at once",
}
FEWEST = 10  # pictures of a test, for its numbers to mean something


class DataError(Exception):
    """The pictures do not do; the message says why."""


class Pictures(NamedTuple):
    """Some of all pictures, with their characters."""

    pixels: Tensor  # [n, H, W] uint8
    characters: Tensor  # [n] int64, as in ``Glyphs``
    fonts: Tensor  # [n] int64


class Data(NamedTuple):
    """All pictures and their split."""

    glyphs: Glyphs
    parts: Split

    def of(self, part: str) -> Pictures:
        """Those of ``train``, or of a test."""
        index = getattr(self.parts, part)
        glyphs = self.glyphs
        return Pictures(glyphs.pixels[index], glyphs.characters[index], glyphs.fonts[index])

    def known(self) -> Tensor:
        """Characters of training, in order, [k]."""
        return self.glyphs.characters[self.parts.train].unique()

    def unseen(self) -> Tensor:
        """Characters that are held out, in order, [u]."""
        both = torch.cat([self.parts.combinations, self.parts.both])
        return self.glyphs.characters[both].unique()

    def names(self, characters: Tensor) -> list[str]:
        return [self.glyphs.names[i] for i in characters.tolist()]


def load(config: Config) -> Data:
    """Draws and splits, the same way each time.

    Raises:
        DataError: Too few are held out to say anything.
    """
    glyphs = render(config.characters)
    data = Data(glyphs, split(glyphs, config.split))
    for part, title in TESTS.items():
        if len(getattr(data.parts, part)) < FEWEST:
            raise DataError(
                f"characters: expected enough for {FEWEST} pictures of each test, "
                f"got {len(glyphs.names)}, which leave {len(getattr(data.parts, part))} of {title}"
            )
    return data
