"""The fonts that matplotlib brings along, and the characters that they draw alike."""

import collections
from collections.abc import Hashable, Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")  # in 4 styles each


def font_paths() -> list[Path]:
    """Files of the 16 fonts, in order."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return [path for path in sorted(folder.glob("*.ttf")) if family(path.stem) in FAMILIES]


def family(font: str) -> str:
    """``DejaVuSans`` of ``DejaVuSans-Bold``."""
    stem = font.split("-")[0]
    return "STIXGeneral" if stem.startswith("STIXGeneral") else stem


def look_alikes(
    characters: Sequence[int], fonts: Sequence[int], drawings: Sequence[Hashable], *, half: bool
) -> np.ndarray:
    """One group, [C], for characters that more than half of their common fonts draw alike: A, Alpha
    and the like. They would be false negatives of one another, and no model can tell them apart.

    Args:
        characters: Of each drawing, 0 to C - 1.
        fonts: Of each drawing.
        drawings: Equal if they look the same.
        half: Whether half of the fonts is enough.
    """
    fonts_of = collections.defaultdict(set)
    alike = collections.defaultdict(list)
    for character, font, drawing in zip(characters, fonts, drawings, strict=True):
        fonts_of[character].add(font)
        alike[font, drawing].append(character)
    times = collections.Counter(pair for same in alike.values() for pair in combinations(same, 2))
    linked = [
        (one, other)
        for (one, other), count in times.items()
        if 2 * count + half > len(fonts_of[one] & fonts_of[other])
    ]
    pairs = np.array(linked, dtype=np.int64).reshape(-1, 2).T
    count = len(fonts_of)
    graph = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
