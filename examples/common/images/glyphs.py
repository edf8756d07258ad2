"""Letters and digits drawn in the fonts that matplotlib brings along."""

import collections
import unicodedata
from typing import NamedTuple

import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from examples.common.fonts import font_paths, look_alikes

CATEGORIES = ("Ll", "Lo", "Lt", "Lu", "Nd")  # of Unicode: letters and decimal digits
AT_LEAST = 8  # fonts that a character must be in


class Glyphs(NamedTuple):
    """N drawings of characters, one for each font that has the character."""

    pixels: np.ndarray  # [N, H, W] uint8
    labels: np.ndarray  # [N] int64: characters that look alike share one
    fonts: np.ndarray  # [N] int64
    names: list[str]  # of labels: the first of the characters
    font_names: tuple[str, ...]


def render(size: int) -> Glyphs:
    """All glyphs at ``size`` pixels a side, on one base line: some 22,000 in two seconds."""
    paths = font_paths()
    charmaps = [FT2Font(str(path)).get_charmap() for path in paths]
    found = collections.Counter(code for charmap in charmaps for code in charmap)
    codes = sorted(
        code
        for code, count in found.items()
        if count >= AT_LEAST and unicodedata.category(chr(code)) in CATEGORIES
    )
    pixels, drawn, fonts = [], [], []
    for index, (path, charmap) in enumerate(zip(paths, charmaps, strict=True)):
        font = ImageFont.truetype(str(path), round(size * 0.6))
        for code in filter(charmap.__contains__, codes):
            pixels.append(_draw(chr(code), font, size))
            drawn.append(code)
            fonts.append(index)
    place = {code: i for i, code in enumerate(codes)}
    outlines = [image.tobytes() for image in pixels]
    labels = look_alikes([place[code] for code in drawn], fonts, outlines, half=False)
    label_of = dict(zip(codes, labels.tolist(), strict=True))
    names: dict[int, str] = {}
    for code in codes:
        names.setdefault(label_of[code], chr(code))
    return Glyphs(
        np.stack(pixels),
        np.array([label_of[code] for code in drawn]),
        np.array(fonts),
        [names[label] for label in range(len(names))],
        tuple(path.stem for path in paths),
    )


def _draw(character: str, font: ImageFont.FreeTypeFont, size: int) -> np.ndarray:
    image = Image.new("L", (size, size))
    at = size / 2, size * 0.7  # middle of the base line
    ImageDraw.Draw(image).text(at, character, font=font, fill=255, anchor="ms")
    return np.asarray(image)
