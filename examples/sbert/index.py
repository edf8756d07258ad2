"""Nearest-neighbour index of the documents, and questions answered from it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

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
    """Writes the encoder alone, and an index of all documents where usearch is installed."""
    encoder.save(folder / ENCODER)
    written = [folder / ENCODER]
    try:
        usearch = _usearch()
    except SearchError:
        return written
    documents = [each for p in parts for each in zip(p.places, p.queries, strict=True)]
    vectors = np.concatenate([encoder.encode(pairs.documents).numpy() for pairs in parts])
    index = usearch.Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(len(vectors)), vectors)
    index.save(str(folder / INDEX))
    (folder / DOCUMENTS).write_text(json.dumps(documents))
    return [*written, folder / INDEX, folder / DOCUMENTS]


def search(question: str, folder: Path, count: int = 10) -> list[Hit]:
    """The documents nearest to a question, best first, from what ``export`` wrote."""
    usearch = _usearch()
    if not (folder / INDEX).exists():
        raise SearchError(f"{folder} holds no index; `python -m examples.sbert train` writes one")
    documents = json.loads((folder / DOCUMENTS).read_text())
    vector: Tensor = load_encoder(folder / ENCODER).encode([question])[0]
    found = usearch.Index.restore(str(folder / INDEX), view=True).search(vector.numpy(), count)
    return [
        Hit(documents[key][0], 1 - float(distance), documents[key][1])
        for key, distance in zip(found.keys, found.distances, strict=True)
    ]


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise SearchError("the index needs usearch: `pip install usearch`") from error
    return usearch.index
