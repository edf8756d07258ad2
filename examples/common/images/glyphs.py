"""Letters and digits drawn in the fonts that matplotlib brings along."""

import collections
import unicodedata
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FONTS = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")  # in 4 styles each
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
    paths = _font_paths()
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
    label_of = _labels(codes, drawn, fonts, pixels)
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


def _font_paths() -> list[Path]:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return [
        path
        for path in sorted(folder.glob("*.ttf"))
        if path.stem.split("-")[0] in FONTS or path.stem.startswith("STIXGeneral")
    ]


def _draw(character: str, font: ImageFont.FreeTypeFont, size: int) -> np.ndarray:
    image = Image.new("L", (size, size))
    at = size / 2, size * 0.7  # middle of the base line
    ImageDraw.Draw(image).text(at, character, font=font, fill=255, anchor="ms")
    return np.asarray(image)


def _labels(
    codes: list[int], drawn: list[int], fonts: list[int], pixels: list[np.ndarray]
) -> dict[int, int]:
    """One label for characters that most of their common fonts draw alike: A, Alpha and the like.

    They would be false negatives of one another, and no retrieval could tell them apart.
    """
    fonts_of = collections.defaultdict(set)
    alike = collections.defaultdict(list)
    for code, font, image in zip(drawn, fonts, pixels, strict=True):
        fonts_of[code].add(font)
        alike[font, image.tobytes()].append(code)
    times = collections.Counter(pair for same in alike.values() for pair in combinations(same, 2))
    pairs = [
        (one, other)
        for (one, other), count in times.items()
        if 2 * count > len(fonts_of[one] & fonts_of[other])
    ]
    index = {code: i for i, code in enumerate(codes)}
    linked = np.array([[index[one], index[other]] for one, other in pairs]).T  # [2, pairs]
    graph = coo_array((np.ones(len(pairs)), tuple(linked)), shape=(len(codes), len(codes)))
    _, labels = connected_components(graph, directed=False)
    return dict(zip(codes, labels.tolist(), strict=True))
