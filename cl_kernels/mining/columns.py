"""Columns of a data set from mined negatives, in the formats of sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cl_kernels.mining.result import MinedNegatives

Format = Literal["triplet", "n-tuple", "labeled-pair", "labeled-list"]
Columns = dict[str, list]


class _Rows(NamedTuple):
    """A row for each positive, [nnz]: documents and scores of it and of its query's negatives."""

    anchor: Tensor  # [nnz]
    found: Tensor  # [nnz, 1 + num_negatives], -1 where there is none
    scores: Tensor  # [nnz, 1 + num_negatives]
    queries: Sequence[Any]
    documents: Sequence[Any]

    def anchors(self, rows: Tensor) -> list:
        return [self.queries[i] for i in self.anchor[rows].tolist()]

    def texts(self, index: Tensor) -> list:
        return [self.documents[j] for j in index.tolist()]


def columns(
    mined: MinedNegatives,
    queries: Sequence[Any],
    documents: Sequence[Any],
    format: Format,
    scores: bool,
) -> Columns:
    """See ``MinedNegatives.columns``."""
    if format not in _FORMATS:
        raise ValueError(f"format: expected one of {', '.join(_FORMATS)}, got {format!r}")
    for name, texts, count in (
        ("queries", queries, len(mined.indices)),
        ("documents", documents, mined.num_documents),
    ):
        if len(texts) != count:
            raise ValueError(f"{name}: expected {count}, got {len(texts)}")
    positives, anchor = mined.positives.keys[:, None], mined.positives.rows()
    found = torch.cat([positives, mined.indices[anchor]], 1)
    values = torch.zeros_like(found)
    if scores:
        if mined.scores is None or mined.positive_scores is None:
            raise ValueError("scores: expected False for negatives mined without return_scores")
        values = torch.cat([mined.positive_scores[:, None], mined.scores[anchor]], 1)
    return _FORMATS[format](_Rows(anchor, found, values, queries, documents), scores)


def _triplets(rows: _Rows, scores: bool) -> Columns:
    row, place = (rows.found[:, 1:] >= 0).nonzero(as_tuple=True)
    result = {
        "anchor": rows.anchors(row),
        "positive": rows.texts(rows.found[row, 0]),
        "negative": rows.texts(rows.found[row, place + 1]),
    }
    pairs = torch.stack([rows.scores[row, 0], rows.scores[row, place + 1]], 1)
    return result | ({"scores": pairs.tolist()} if scores else {})


def _tuples(rows: _Rows, scores: bool) -> Columns:
    whole = (rows.found >= 0).all(1).nonzero().flatten()
    positive, *negatives = rows.found[whole].unbind(1)
    result = {"anchor": rows.anchors(whole), "positive": rows.texts(positive)}
    result |= {f"negative_{i}": rows.texts(index) for i, index in enumerate(negatives, 1)}
    return result | ({"scores": rows.scores[whole].tolist()} if scores else {})


def _labeled_pairs(rows: _Rows, scores: bool) -> Columns:
    """A query's negatives follow its first positive."""
    wanted = rows.found >= 0
    wanted[1:, 1:] &= (rows.anchor[1:] != rows.anchor[:-1])[:, None]
    row, place = wanted.nonzero(as_tuple=True)
    result = {"anchor": rows.anchors(row), "document": rows.texts(rows.found[row, place])}
    if scores:
        return result | {"score": rows.scores[row, place].tolist()}
    return result | {"label": (place == 0).long().tolist()}


def _labeled_lists(rows: _Rows, scores: bool) -> Columns:
    some = (rows.found[:, 1:] >= 0).any(1).nonzero().flatten()
    found, values = rows.found[some], rows.scores[some]
    filled = [row >= 0 for row in found]
    result = {
        "anchor": rows.anchors(some),
        "documents": [rows.texts(f[keep]) for f, keep in zip(found, filled, strict=True)],
    }
    if scores:
        kept = zip(values, filled, strict=True)
        return result | {"scores": [v[keep].tolist() for v, keep in kept]}
    return result | {"labels": [[1] + [0] * (int(keep.sum()) - 1) for keep in filled]}


_FORMATS: dict[str, Callable[[_Rows, bool], Columns]] = dict(
    zip(get_args(Format), (_triplets, _tuples, _labeled_pairs, _labeled_lists), strict=True)
)
