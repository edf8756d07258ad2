"""Nearest-neighbour index of the documents, and questions answered from it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from examples.common.fingerprint import fingerprint
from examples.common.guards import replacing
from examples.sbert.data import Pairs
from examples.sbert.encoder import TextEncoder, load_encoder

ENCODER, INDEX, DOCUMENTS = "encoder", "index.usearch", "documents.json"


class SearchError(Exception):
    """The index cannot be made or read; the message says what to do."""


class Hit(NamedTuple):
    place: str
    score: float  # cosine
    summary: str


def export(encoder: TextEncoder, parts: list[Pairs], folder: Path) -> list[Path]:
    """Writes the encoder and, where usearch is installed, an index of all documents beside it.

    All of them are made aside and take the place of ``folder / ENCODER`` as one.

    Raises:
        OutputError: They cannot be written; what was there before still is.
    """
    place = folder / ENCODER
    with replacing(place) as aside:
        encoder.save(aside)
        indexed = _write_index(encoder, parts, aside)
    return [place, *(place / name for name in indexed)]


def _write_index(encoder: TextEncoder, parts: list[Pairs], folder: Path) -> tuple[str, ...]:
    try:
        usearch = _usearch()
    except SearchError:
        return ()
    documents = [each for p in parts for each in zip(p.places, p.queries, strict=True)]
    vectors = np.concatenate([encoder.encode(pairs.documents).numpy() for pairs in parts])
    index = usearch.Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(len(vectors)), vectors)
    data = bytes(index.save())  # its own writer does not notice a disk that fills up at the end
    (folder / INDEX).write_bytes(data)
    record = {
        "encoder": encoder.fingerprint(),
        "index": fingerprint([data]),
        "documents": documents,
    }
    (folder / DOCUMENTS).write_text(json.dumps(record))
    return INDEX, DOCUMENTS


def search(question: str, folder: Path, count: int = 10) -> list[Hit]:
    """The documents nearest to a question, best first, from what ``export`` wrote.

    Raises:
        SearchError: There is no index, a damaged one, or that of another encoder.
        EncoderError: The encoder is damaged.
    """
    if count < 1:
        raise SearchError(f"top: expected at least 1, got {count}")
    usearch, place = _usearch(), folder / ENCODER
    if not (place / INDEX).exists():
        raise SearchError(f"{folder} holds no index; `python -m examples.sbert train` writes one")
    record = _read_record(place)
    encoder = load_encoder(place)
    if encoder.fingerprint() != record["encoder"]:
        raise SearchError(
            f"{place / INDEX} was made by another encoder than the one in {place}; `train` makes "
            "both anew"
        )
    vector: Tensor = encoder.encode([question])[0]
    index = usearch.Index.restore(str(place / INDEX), view=True)
    count = min(count, len(index))
    # A graph may miss some of the farthest: a large share of all is cheaper to go through.
    found = index.search(vector.numpy(), count, exact=10 * count >= len(index))
    documents = record["documents"]
    return [
        Hit(documents[key][0], 1 - float(distance), documents[key][1])
        for key, distance in zip(found.keys, found.distances, strict=True)
    ]


def _read_record(place: Path) -> dict[str, Any]:
    """What goes with the index, which is whole: a truncated one would be read past its end."""
    try:
        record = json.loads((place / DOCUMENTS).read_text())
        if record["index"] == fingerprint([(place / INDEX).read_bytes()]):
            return record
    except (KeyError, OSError, TypeError, ValueError):
        pass
    raise SearchError(f"{place / INDEX} is damaged; `train` writes it anew")


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise SearchError("the index needs usearch: `pip install usearch`") from error
    return usearch.index
