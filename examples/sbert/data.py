"""Pairs of a query and its document to train on, and held-out ones that training never sees."""

import csv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor

from examples.common.guards import one_line
from examples.sbert import python_code
from examples.sbert.python_code import Pair
from examples.sbert.text import words

PYTHON = "python"


class DataError(Exception):
    """The data cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Pairs:
    """Document i answers query i, and is the only document known to.

    Args:
        queries, documents: N texts.
        places: Where each pair is from: ``module:line``, or ``row i``.
        groups: Shape [N] int64. Queries of one group ask the same in other words: their documents
            are no negatives of one another.
    """

    queries: list[str]
    documents: list[str]
    places: list[str]
    groups: Tensor

    def __len__(self) -> int:
        return len(self.queries)


class Corpus(NamedTuple):
    """``dropped`` pairs had a query or a document that an earlier pair had."""

    train: Pairs
    heldout: Pairs
    dropped: int


def load(
    dataset: str,
    cache: Path,
    *,
    query_column: str = "",
    document_column: str = "",
    heldout: float = 0.1,
    limit: int = 0,
) -> Corpus:
    """Reads pairs, drops repeated ones and splits them the same way each time.

    Args:
        dataset: ``python``, a file of tab-separated pairs, or a Hugging Face data set: a folder
            that ``save_to_disk`` wrote, or anything that ``datasets.load_dataset`` takes.
        cache: A folder for the pairs that ``python`` gathers.
        query_column, document_column: Their names; may be left out if there are two columns.
        heldout: The share of modules (of pairs, for other data sets) that is held out.
        limit: Keep this many pairs, evenly spread; 0 keeps all.

    Raises:
        DataError: The data or their columns are missing, or there are too few.
    """
    columns = query_column, document_column
    if any(columns) and not all(columns):
        raise DataError("name both --query-column and --document-column, or neither")
    if dataset == PYTHON:
        if any(columns):
            raise DataError("--query-column and --document-column need --dataset")
        pairs = python_code.gather(cache)
    elif Path(dataset).is_file():
        pairs = list(_tab_separated(Path(dataset), columns))
    elif _means_a_file(dataset):
        raise DataError(f"dataset: expected a file or a data set, got {dataset}: no such file")
    else:
        pairs = list(_hugging_face(dataset, columns))
    unique = list(_unique(pairs))
    dropped = len(pairs) - len(unique)
    if limit:
        kept = min(limit, len(unique))
        unique = [unique[i * len(unique) // kept] for i in range(kept)]
    is_heldout = [zlib.crc32(pair.unit.encode()) % 10_000 < heldout * 10_000 for pair in unique]
    groups = _groups(unique)
    train, held = (
        _subset(unique, groups, [i for i, is_ in enumerate(is_heldout) if is_ == part])
        for part in (False, True)
    )
    if min(len(train), len(held)) < 2:
        raise DataError(
            f"{dataset} has {len(unique)} different pairs, {len(train)} to train on and "
            f"{len(held)} held out: there must be two of each at least"
        )
    return Corpus(train, held, dropped)


def _means_a_file(name: str) -> bool:
    """Whether a name that is no file was meant to be: no hub is asked for what is a typing error.

    Data sets are called ``name`` or ``owner/name``, perhaps with a version such as ``-v1.0``.
    """
    path = Path(name)
    nowhere = path.is_absolute() or name.startswith((".", "~"))
    return not path.exists() and (nowhere or path.suffix[1:].isalpha())


def _subset(pairs: list[Pair], groups: Tensor, index: list[int]) -> Pairs:
    chosen = [pairs[i] for i in index]
    return Pairs(
        [pair.query for pair in chosen],
        [pair.document for pair in chosen],
        [pair.place for pair in chosen],
        groups[index],
    )


def _unique(pairs: list[Pair]) -> Iterator[Pair]:
    """The first pair of each query and each document, up to case and punctuation."""
    seen: set[tuple[str, ...]] = set()
    for pair in pairs:
        query, document = ("query", *words(pair.query)), ("document", *words(pair.document))
        if len(query) > 1 and len(document) > 1 and not seen & {query, document}:
            seen |= {query, document}
            yield pair


def _groups(pairs: list[Pair]) -> Tensor:
    """One id for all queries with the same words but for stop words and a final s."""
    ids: dict[frozenset[str], int] = {}
    keys = []
    for pair in pairs:
        said = words(pair.query)
        content = {word.rstrip("s") for word in said if word not in ENGLISH_STOP_WORDS}
        keys.append(frozenset(content or said))
    return torch.tensor([ids.setdefault(key, len(ids)) for key in keys])


def _tab_separated(path: Path, columns: tuple[str, str]) -> Iterator[Pair]:
    rows = _rows(path)
    first = next(rows, [])
    if all(columns):
        places = _find(columns, first, path)
    elif len(first) == 2:
        places = (0, 1)
        yield _pair(first[0], first[1], 1)
    else:
        raise DataError(
            f"{path} has {len(first)} columns ({', '.join(first)}); name two of its first line "
            "with --query-column and --document-column"
        )
    for number, row in enumerate(rows, 2):
        if len(row) != len(first):
            raise DataError(f"{path}, line {number}: expected {len(first)} columns, got {len(row)}")
        yield _pair(row[places[0]], row[places[1]], number)


def _rows(path: Path) -> Iterator[list[str]]:
    reader = csv.reader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        yield from reader
    except csv.Error as error:  # a field of more than 128 KiB is no text to embed
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    # What is not UTF-8 is let through at first, to be found with its line.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{path}, line {number}: expected UTF-8, got other bytes from character "
                    f"{error.start + 1} on"
                ) from error
            yield line


def _hugging_face(name: str, columns: tuple[str, str]) -> Iterator[Pair]:
    rows: Any = _open(name)
    if isinstance(rows, dict):  # of splits
        rows = rows["train"] if "train" in rows else next(iter(rows.values()))
    there = list(rows.column_names)
    if not all(columns):
        if len(there) != 2:
            raise DataError(
                f"{name} has the columns {', '.join(there)}; name two of them with --query-column "
                "and --document-column"
            )
        columns = there[0], there[1]
    _find(columns, there, name)
    for number, row in enumerate(rows, 1):
        query, document = (row[column] for column in columns)
        if not isinstance(query, str) or not isinstance(document, str):
            raise DataError(f"{name}, row {number}: {columns} do not hold texts")
        yield _pair(query, document, number)


def _open(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name} is no file, and Hugging Face data sets need `pip install datasets`"
        ) from error
    folder = Path(name)
    saved = any((folder / file).exists() for file in ("state.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:
        raise DataError(
            f"{name} is neither a file nor a data set that loads: {one_line(error)}"
        ) from error


def _find(columns: tuple[str, str], there: list[str], name: Any) -> tuple[int, int]:
    if missing := [column for column in columns if column not in there]:
        raise DataError(
            f"{name} has no column {' and no column '.join(missing)}; it has {', '.join(there)}"
        )
    return there.index(columns[0]), there.index(columns[1])


def _pair(query: str, document: str, number: int) -> Pair:
    return Pair(query, document, f"row {number}", f"{query}\t{document}")
