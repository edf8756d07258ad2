"""Pictures of characters in the fonts that matplotlib brings along, and their Unicode names."""

import collections
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from examples.common.fonts import family, font_paths, look_alikes

SIZE = 32  # pixels a side
OVERSAMPLED = 4
X_HEIGHT = 11  # pixels: fonts are scaled to the same height of an x
BASE_LINE = 23  # pixels from the top
UNSEEN = ("C", "M", "Z")  # categories of Unicode: controls, marks on a letter, spaces


class Glyphs(NamedTuple):
    """N pictures of C characters, one for each font that has the character."""

    pixels: Tensor  # [N, SIZE, SIZE] uint8
    characters: Tensor  # [N] int64
    fonts: Tensor  # [N] int64
    codes: list[int]  # [C]
    names: list[str]  # [C], of Unicode
    groups: Tensor  # [C] int64: characters that look alike share one
    font_names: tuple[str, ...]

    def families(self) -> list[str]:
        """Of each font."""
        return [family(name) for name in self.font_names]


def render(most: int = 0) -> Glyphs:
    """All pictures: some 49,000 in three seconds.

    Args:
        most: Only so many characters, those that most fonts have; 0: all.
    """
    paths = font_paths()
    charmaps = [set(filter(_is_wanted, FT2Font(str(path)).get_charmap())) for path in paths]
    found = collections.Counter(code for charmap in charmaps for code in charmap)
    wanted = set(sorted(found, key=lambda code: (-found[code], code))[: most or None])
    pixels, drawn, fonts, outlines = [], [], [], []
    for index, (path, charmap) in enumerate(zip(paths, charmaps, strict=True)):
        for code, large in _drawings(path, sorted(charmap & wanted)):
            pixels.append(np.asarray(large.reduce(OVERSAMPLED)))
            drawn.append(code)
            fonts.append(index)
            outlines.append(hash(large.tobytes()))
    codes, characters = np.unique(drawn, return_inverse=True)
    groups = look_alikes(characters.tolist(), fonts, outlines, half=True)
    return Glyphs(
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(characters),
        torch.tensor(fonts),
        codes.tolist(),
        [unicodedata.name(chr(code)) for code in codes],
        torch.from_numpy(groups.astype(np.int64)),
        tuple(path.stem for path in paths),
    )


def _drawings(path: Path, codes: list[int]) -> Iterator[tuple[int, Image.Image]]:
    """The characters that leave ink, ``OVERSAMPLED`` times too large."""
    layout = ImageFont.Layout.BASIC
    _, top, _, _ = ImageFont.truetype(path, 1000, layout_engine=layout).getbbox("x", anchor="ms")
    height = round(X_HEIGHT * OVERSAMPLED * 1000 / -top)
    font = ImageFont.truetype(path, height, layout_engine=layout)
    side = SIZE * OVERSAMPLED
    for code in codes:
        image = Image.new("L", (side, side))
        at = side / 2, BASE_LINE * OVERSAMPLED
        ImageDraw.Draw(image).text(at, chr(code), font=font, fill=255, anchor="ms")
        if image.getbbox():
            yield code, image


def _is_wanted(code: int) -> bool:
    """Whether the character has a name of its own and can be seen alone.

    The Kelvin sign is, canonically, the letter K; a mathematical bold K is K in a font.
    """
    character = chr(code)
    if unicodedata.category(character)[0] in UNSEEN or not unicodedata.name(character, ""):
        return False
    made_of = unicodedata.decomposition(character)
    same_character = made_of and " " not in made_of
    return not (same_character or made_of.startswith("<font>"))
