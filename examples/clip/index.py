"""The towers and an index of all pictures on disk, and questions answered from them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cl_kernels import topk
from examples.clip.config import Config
from examples.clip.glyphs import SIZE, Glyphs
from examples.clip.model import Clip, embed_names, embed_pictures
from examples.clip.names import Vocabulary, parts
from examples.clip.towers import ImageTower, TextTower
from examples.common.fingerprint import fingerprint
from examples.common.guards import one_line, replacing

TOWERS, WEIGHTS, INDEX, RECORD = "towers", "towers.safetensors", "index.safetensors", "index.json"
OF_EACH = 8  # pictures of a character in an answer


class SearchError(Exception):
    """The index cannot be read or asked; the message says what to do."""


class Hit(NamedTuple):
    """A character, with its best pictures [n, H, W]."""

    code: int
    name: str
    score: float  # cosine of the best picture
    font: str  # of the best picture
    pictures: Tensor


class Index(NamedTuple):
    """What ``export`` wrote.

    Both towers are there; questions take the text's only.
    """

    image: ImageTower
    text: TextTower
    embeddings: Tensor  # [N, dim], unit
    pixels: Tensor  # [N, H, W] uint8
    characters: Tensor  # [N] int64
    fonts: Tensor  # [N] int64
    codes: list[int]
    names: list[str]
    font_names: list[str]


def export(model: Clip, config: Config, glyphs: Glyphs, folder: Path) -> list[Path]:
    """Writes towers and index, aside at first; they take the place of ``folder / TOWERS`` as one.

    Raises:
        OutputError: They cannot be written; what was there before still is.
    """
    place = folder / TOWERS
    with replacing(place) as aside:
        _write(model, config, glyphs, aside)
    return [place / name for name in (WEIGHTS, INDEX, RECORD)]


def _write(model: Clip, config: Config, glyphs: Glyphs, folder: Path) -> None:
    model.eval()
    towers = {"image": model.image, "text": model.text}
    weights = {
        f"{name}.{key}": weight.detach().float().cpu().contiguous()
        for name, tower in towers.items()
        for key, weight in tower.state_dict().items()
    }
    index = {
        "embeddings": embed_pictures(model.image, glyphs.pixels),
        "pixels": glyphs.pixels.contiguous(),
        "characters": glyphs.characters,
        "fonts": glyphs.fonts,
    }
    save_file(weights, folder / WEIGHTS)
    save_file(index, folder / INDEX)
    record = {
        "settings": asdict(config),
        "vocabulary": model.text.vocabulary.entries,
        "codes": glyphs.codes,
        "names": glyphs.names,
        "fonts": glyphs.font_names,
        "files": _files(folder),
    }
    (folder / RECORD).write_text(json.dumps(record) + "\n")


def load(folder: Path, *, quick: bool = False) -> Index:
    """Reads what ``export`` wrote to ``folder / TOWERS``, and nothing of the training.

    Args:
        folder: Of the run.
        quick: Whether that was a small one: for the message.

    Raises:
        SearchError: Nothing is there, or something damaged.
    """
    place = folder / TOWERS
    if not place.exists():
        small = " --quick" * quick
        other = "" if quick else "; of a small run ask with --quick"
        raise SearchError(
            f"{folder} holds no index; `python -m examples.clip train{small}` writes one{other}"
        )
    try:
        record = json.loads((place / RECORD).read_text())
        if record["files"] != _files(place):
            raise ValueError("its files do not belong together")
        return _read(place, record)
    except Exception as error:  # each of the formats has its own
        raise SearchError(
            f"{place} is damaged ({one_line(error)}); `train` writes it anew"
        ) from error


def _read(place: Path, record: dict[str, Any]) -> Index:
    settings, vocabulary = record["settings"], Vocabulary(record["vocabulary"])
    dim = settings["dim"]
    image = ImageTower(settings["width"], settings["stages"], SIZE, dim)
    text = TextTower(vocabulary, torch.ones(len(vocabulary)), dim)
    weights = load_file(place / WEIGHTS)
    for name, tower in (("image.", image), ("text.", text)):
        own = {k.removeprefix(name): w for k, w in weights.items() if k.startswith(name)}
        tower.load_state_dict(own)
        tower.eval()
    index = load_file(place / INDEX)
    if not len(record["codes"]) == len(record["names"]) == int(index["characters"].max()) + 1:
        raise ValueError("it names other characters than it shows")
    return Index(image, text, **index, **{
        "codes": record["codes"], "names": record["names"], "font_names": record["fonts"]
    })  # fmt: skip


def _files(folder: Path) -> dict[str, str]:
    return {name: fingerprint([(folder / name).read_bytes()]) for name in (WEIGHTS, INDEX)}


def unknown(question: str, index: Index) -> list[str]:
    """Words of a question that no trained name has."""
    return [
        word for word in parts(question)[0] if not bool(index.text.vocabulary.ids([word]).any())
    ]


def search(question: str, index: Index, count: int = 10) -> list[Hit]:
    """The characters nearest to a question, best first, each once.

    Raises:
        SearchError: No word of the question is known, or ``count`` is not positive.
    """
    if count < 1:
        raise SearchError(f"top: expected at least 1, got {count}")
    if not bool(index.text.vocabulary.ids([question]).any()):
        said = ", ".join(parts(question)[0]) or "no word"
        raise SearchError(f"question: expected words of the names that were trained on, got {said}")
    query = embed_names(index.text, [question])
    found = topk(query, index.embeddings, len(index.embeddings), normalize=False)
    characters = index.characters[found.indices[0]].tolist()
    places: dict[int, list[int]] = {}  # of each character's pictures, best first
    for place, character in enumerate(characters):
        if character not in places and len(places) == count:
            continue
        places.setdefault(character, []).append(place)
    hits = []
    for character, of_it in places.items():
        best = found.indices[0, of_it[:OF_EACH]]
        font = index.font_names[int(index.fonts[best[0]])]
        score = found.values[0, of_it[0]].item()
        code, name = index.codes[character], index.names[character]
        hits.append(Hit(code, name, score, font, index.pixels[best]))
    return hits
