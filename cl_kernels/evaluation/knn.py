"""The weighted k-nearest-neighbour classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cl_kernels.checks import check_count
from cl_kernels.pairs import PairFilter
from cl_kernels.search import TopK, topk

from .checks import check_finite_embeddings, check_labels, check_number

if TYPE_CHECKING:
    import numpy


class KNNPrediction(NamedTuple):
    """What the neighbours of each query vote for.

    Args:
        labels: The class with the largest share, the smallest of equal ones, int64 [M]; -1 for a
            query without neighbours.
        scores: Each class's share of the vote, [M, num_classes]; rows sum to 1, or to 0 without
            neighbours.
    """

    labels: Tensor
    scores: Tensor


def knn_classify(
    query: Tensor,
    key: Tensor | numpy.ndarray,
    key_labels: Tensor,
    k: int = 20,
    *,
    temperature: float | None = 0.07,
    num_classes: int | None = None,
    exclude_self: bool = False,
    normalize: bool = True,
    progress: bool = False,
    backend: str | None = None,
) -> KNNPrediction:
    """Classifies queries by the labels of their k most similar keys.

    Each neighbour votes for its class with weight ``exp(score / temperature)``: Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), section
    3.4 (there k = 200). Memory is O(M (k + num_classes)) beside the embeddings.

    Args:
        query: Embeddings, shape [M, D], finite.
        key: Labelled embeddings, shape [N, D]: all that ``topk`` takes. A key with a NaN is
            nobody's neighbour.
        key_labels: Classes 0, 1, ... of the keys, shape [N], on the queries' device
            (``torch.unique(labels, return_inverse=True)`` makes them of other labels).
        k: Neighbours; all there are if k exceeds N.
        temperature: Positive; None gives every neighbour the same vote.
        num_classes: Default: the largest label + 1.
        exclude_self: Query i is key i and no neighbour of its own: leave-one-out.
        normalize, progress, backend: As in ``topk``.

    Returns:
        ``KNNPrediction(labels, scores)``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    check_finite_embeddings("query", query)
    check_count("k", k)
    M, N = len(query), len(key)
    if N == 0:
        raise ValueError("key: expected at least one row, got none")
    classes, num_classes = _classes(key_labels, N, num_classes, query.device)
    if temperature is not None:
        check_number("temperature", temperature, "a positive number", lambda t: 0 < t < torch.inf)
    if exclude_self and M != N:
        raise ValueError(f"exclude_self: expected as many keys as queries, {M}, got {N}")
    index = torch.arange(M, device=query.device)
    with torch.no_grad():
        found = topk(
            query,
            key,
            min(k, N),
            where=PairFilter(index, index, "different") if exclude_self else (),
            normalize=normalize,
            progress=progress,
            backend=backend,
        )
        return _vote(found, classes, num_classes, temperature)


def knn_accuracy(
    query: Tensor,
    query_labels: Tensor,
    key: Tensor | numpy.ndarray | None = None,
    key_labels: Tensor | None = None,
    k: int = 20,
    *,
    temperature: float | None = 0.07,
    normalize: bool = True,
    backend: str | None = None,
) -> float:
    """The share of queries that ``knn_classify`` puts into their class.

    Args:
        query: Embeddings, shape [M, D], finite.
        query_labels: Their classes 0, 1, ..., shape [M].
        key, key_labels: Labelled embeddings; None for leave-one-out among the queries.
        k, temperature, normalize, backend: As in ``knn_classify``.
    """
    if (key is None) != (key_labels is None):
        given, missing = ("key", "key_labels") if key_labels is None else ("key_labels", "key")
        raise ValueError(f"{missing}: expected it together with {given}, got None")
    check_finite_embeddings("query", query)
    truth = check_labels("query_labels", query_labels, len(query), "query")
    predicted = knn_classify(
        query,
        query if key is None else key,
        truth if key_labels is None else key_labels,
        k,
        temperature=temperature,
        exclude_self=key is None,
        normalize=normalize,
        backend=backend,
    ).labels
    return (predicted == truth).double().mean().item()


def _classes(
    key_labels: Tensor, N: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, int]:
    classes = check_labels("key_labels", key_labels, N, "key")
    if classes.device != device:
        raise ValueError(
            f"key_labels: expected the device of query, {device}, got {classes.device}"
        )
    low, high = int(classes.min()), int(classes.max())
    if num_classes is None:
        num_classes = high + 1
    else:
        check_count("num_classes", num_classes)
    if low < 0 or high >= num_classes:
        raise ValueError(f"key_labels: expected classes in [0, {num_classes}), got {low} to {high}")
    return classes, num_classes


def _vote(
    found: TopK, classes: Tensor, num_classes: int, temperature: float | None
) -> KNNPrediction:
    missing = found.indices < 0  # [M, k]
    logits = torch.zeros_like(found.values) if temperature is None else found.values / temperature
    weights = logits.masked_fill(missing, -torch.inf).softmax(1).masked_fill(missing, 0)
    votes = classes[found.indices.clamp_min(0)]
    scores = weights.new_zeros(len(votes), num_classes)
    # One neighbour of every query at a time: sums in a fixed order, on GPUs too.
    for vote, weight in zip(votes.split(1, dim=1), weights.split(1, dim=1), strict=True):
        scores.scatter_add_(1, vote, weight)
    labels = scores.argmax(1).masked_fill(missing[:, 0], -1)
    return KNNPrediction(labels, scores)
