"""Zero-shot classification and retrieval of what training never saw.

An answer is right if it looks like the one asked for: a Greek capital Alpha is a Latin A.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import topk
from cl_kernels.evaluation import label_relevance, retrieval_metrics
from examples.clip import pixels
from examples.clip.data import TESTS, Data, Pictures
from examples.clip.model import Clip, embed_names, embed_pictures

AT = (1, 5, 10)


class Zeroshot(NamedTuple):
    """Accuracies of one choice among names, of ``n`` pictures."""

    test: str
    names: str  # which there are to choose from
    pictures: int
    choices: int
    chance: float
    pixels: float
    clip: float
    exact: float  # the very name, not one of those that look alike
    best_exact: float  # of whoever sees only the picture


class Retrieval(NamedTuple):
    """Whether a right answer is among the first k, R@k."""

    test: str
    direction: str
    queries: int
    gallery: int
    chance: list[float]  # at each k of ``AT``
    clip: list[float]


class Embedded(NamedTuple):
    """Unit vectors of all that is asked."""

    names: Tensor  # [C, dim], of all characters
    pictures: dict[str, Tensor]  # of each test, [n, dim]


def embed(model: Clip, data: Data) -> Embedded:
    """Both towers' view of the tests."""
    model.eval()
    pictures = {part: embed_pictures(model.image, data.of(part).pixels) for part in TESTS}
    return Embedded(embed_names(model.text, data.glyphs.names), pictures)


def zeroshot(data: Data, vectors: Embedded) -> list[Zeroshot]:
    """Each picture chooses a name: among all that there are, and among the unseen ones alone."""
    known, unseen = data.known(), data.unseen()
    both = torch.cat([known, unseen]).sort().values
    asked = [("fonts", "of training", known)]
    for part in ("combinations", "both"):
        asked += [(part, "all", both), (part, "unseen", unseen)]
    return [_zeroshot(data, vectors, *each) for each in asked]


def _zeroshot(data: Data, vectors: Embedded, part: str, which: str, choices: Tensor) -> Zeroshot:
    pictures, groups = data.of(part), data.glyphs.groups
    found = topk(vectors.pictures[part], vectors.names[choices], 1, normalize=False)
    chosen = choices[found.indices[:, 0]]
    wanted = groups[pictures.characters]
    by_pixels = groups[pixels.nearest(data, pictures, choices)]
    alike = (groups[choices] == wanted[:, None]).sum(1)  # [n]
    return Zeroshot(
        part,
        which,
        len(pictures.pixels),
        len(choices),
        alike.double().mean().item() / len(choices),
        _share(by_pixels == wanted),
        _share(groups[chosen] == wanted),
        _share(chosen == pictures.characters),
        best_exact(pictures),
    )


def best_exact(pictures: Pictures) -> float:
    """The most pictures that can get their very name: identical ones get one answer."""
    times: dict[bytes, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    drawn = zip(pictures.pixels.numpy(), pictures.characters.tolist(), strict=True)
    for picture, character in drawn:
        times[picture.tobytes()][character] += 1
    return sum(max(of.values()) for of in times.values()) / len(pictures.pixels)


def retrieval(data: Data, vectors: Embedded) -> list[Retrieval]:
    """Names by pictures and pictures by names, each among those of its test."""
    rows = []
    for part in TESTS:
        pictures, groups = data.of(part), data.glyphs.groups
        characters = pictures.characters.unique()
        sides = {
            "picture": (vectors.pictures[part], groups[pictures.characters]),
            "name": (vectors.names[characters], groups[characters]),
        }
        for one, other in (("picture", "name"), ("name", "picture")):
            (query, asked), (key, there) = sides[one], sides[other]
            found = retrieval_metrics(
                query, key, label_relevance(asked, there), at=AT, exact_map=False, normalize=False
            )
            relevant = (asked[:, None] == there).sum(1)
            rows.append(
                Retrieval(
                    part,
                    f"{one} -> {other}",
                    len(query),
                    len(key),
                    [chance(relevant, len(key), k) for k in AT],
                    [found[f"hit@{k}"] for k in AT],
                )
            )
    return rows


def chance(relevant: Tensor, count: int, k: int) -> float:
    """How often k of ``count`` keys at random have a relevant one, on average over queries."""
    values, times = relevant.unique(return_counts=True)
    k = min(k, count)
    hit = [1 - math.comb(count - r, k) / math.comb(count, k) for r in values.tolist()]
    return sum(h * t for h, t in zip(hit, times.tolist(), strict=True)) / len(relevant)


def as_records(rows: Sequence[NamedTuple]) -> list[dict[str, Any]]:
    return [row._asdict() for row in rows]


def _share(right: Tensor) -> float:
    return right.double().mean().item()
