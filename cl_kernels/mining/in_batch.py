"""The hardest pairs of a batch by labels, for triplet losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from cl_kernels.checks import as_scalar, check_embeddings, check_indices
from cl_kernels.mining.positives import pair_scores
from cl_kernels.pairs import PairFilter
from cl_kernels.search import TopK, topk


def hardest_negative(
    query: Tensor,
    labels: Tensor,
    key: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    normalize: bool = True,
    backend: str | None = None,
) -> TopK:
    """Each query's most similar key of another label.

    With ``hardest_positive`` the pairs of the batch-hard triplet loss (Hermans et al., "In Defense
    of the Triplet Loss for Person Re-Identification" (2017), equation 5)::

        positive, negative = hardest_positive(z, labels), hardest_negative(z, labels)
        loss = torch.relu(negative.values - positive.values + margin).mean()

    (A query that lacks one of the two adds 0 to it.)

    Args:
        query: Embeddings, shape [M, D]. float32, float16, bfloat16 or float64.
        labels: Integer labels of the queries, shape [M].
        key: Embeddings to choose from, shape [N, D]. Default: the queries themselves.
        key_labels: Labels of the keys, shape [N]; given with ``key``.
        normalize: Compare by cosine.
        backend: Which backend serves the search.

    Returns:
        ``TopK(values, indices)`` of shape [M]: similarities in float32 (float64), differentiable
        with respect to query and key, and which keys they are. Where there is no such key the
        value is -inf, the index -1 and the gradient 0. Ties go to the smaller index.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    key, where = _keys(query, labels, key, key_labels, "different")
    return _first(topk(query, key, 1, normalize=normalize, where=where, backend=backend))


def hardest_positive(
    query: Tensor,
    labels: Tensor,
    key: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    normalize: bool = True,
    backend: str | None = None,
) -> TopK:
    """Each query's least similar key of the same label, itself excluded.

    Arguments, result and errors are those of ``hardest_negative``, but a value is +inf where there
    is no such key. A query is excluded from its own keys only where ``key`` is not given.
    """
    key, where = _keys(query, labels, key, key_labels, "same")
    return _first(
        topk(query, key, 1, normalize=normalize, where=where, largest=False, backend=backend)
    )


def semi_hard_negative(
    query: Tensor,
    labels: Tensor,
    key: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    positive: Tensor | None = None,
    margin: float | None = None,
    normalize: bool = True,
    backend: str | None = None,
) -> TopK:
    """Each query's most similar key of another label that is less similar than its positive.

    Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering" (2015),
    section 3.2 and equation 4: unlike the hardest negatives, these do not collapse the model
    early in training. Arguments, result and errors are those of ``hardest_negative``, and:

    Args:
        positive: Which key is each query's positive, shape [M]; -1 for none. Default: the
            hardest positive. A query without a positive has no semi-hard negative.
        margin: Only negatives whose similarity is within this margin of the positive's.
    """
    if margin is not None:
        as_scalar("margin", margin)
    keys, where = _keys(query, labels, key, key_labels, "different")
    settings = {"normalize": normalize, "backend": backend}
    if positive is None:
        with torch.no_grad():
            found = hardest_positive(query, labels, key, key_labels, **settings)
        ceiling = found.values.masked_fill(found.indices < 0, -torch.inf)
    else:
        check_indices("positive", positive, query, keys.shape[0], least=-1)
        rows = torch.arange(query.shape[0], device=query.device)
        scores = pair_scores(query, keys, rows, positive.clamp_min(0).long(), **settings)
        ceiling = scores.masked_fill(positive < 0, -torch.inf)
    floor = None if margin is None else ceiling - margin
    return _first(topk(query, keys, 1, where=where, below=ceiling, above=floor, **settings))


def _keys(
    query: Tensor,
    labels: Tensor,
    key: Tensor | None,
    key_labels: Tensor | None,
    keep: Literal["same", "different"],
) -> tuple[Tensor, tuple[PairFilter, ...]]:
    """The keys and the filters that keep those of the same label, or of different ones."""
    check_embeddings("query", query)
    if key is not None and key_labels is not None:
        return key, (PairFilter(labels, key_labels, keep),)
    if key is not None or key_labels is not None:
        given, missing = ("key_labels", "key") if key is None else ("key", "key_labels")
        raise ValueError(f"{missing}: expected together with {given}, got None")
    where = (PairFilter(labels, labels, keep),)
    if keep == "same":
        row = torch.arange(query.shape[0], device=query.device)
        where = (*where, PairFilter(row, row, "different"))
    return query, where


def _first(found: TopK) -> TopK:
    return TopK(found.values[:, 0], found.indices[:, 0])
