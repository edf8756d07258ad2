"""The weighted k-nearest-neighbour classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.checks import check_count
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Group
from cl_kernels.search import topk
from cl_kernels.search.shards import positions

from .checks import check_corpus, check_finite_embeddings, check_labels, check_number
from .sharded import of_all_ranks
from .ties import tied_share

if TYPE_CHECKING:
    import numpy


_MOST_CLASSES = 1 << 24  # of labels that nobody counted: hashes would ask for all memory


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
    group: Group | None = None,
    backend: str | None = None,
) -> KNNPrediction:
    """Classifies queries by the labels of their k most similar keys.

    Each neighbour votes for its class with weight ``exp(score / temperature)``: Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018), section
    3.4 (there k = 200). Memory is O(M (k + num_classes)) beside the embeddings. Of keys with equal
    scores the first ones vote; a warning says so where that decides for more than 1 % of the
    queries, as with embeddings that collapsed.

    Args:
        query: Embeddings, shape [M, D], finite.
        key: Labelled embeddings, shape [N, D]: all that ``topk`` takes. A key with a NaN is
            nobody's neighbour.
        key_labels: Classes 0, 1, ... of the keys, shape [N], on the queries' device
            (``torch.unique(labels, return_inverse=True)`` makes them of other labels).
        k: Neighbours; all there are if k exceeds N.
        temperature: Positive; None gives every neighbour the same vote.
        num_classes: Default: the largest label + 1, at most 2^24.
        exclude_self: Query i is key i and no neighbour of its own: leave-one-out.
        normalize, progress, backend: As in ``topk``.
        group: Of torch.distributed: the keys and their labels are those of all its ranks, of which
            each passes its own. Queries are this rank's.

    Returns:
        ``KNNPrediction(labels, scores)``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    if group is not None:
        return of_all_ranks(knn_classify, locals())
    check_finite_embeddings("query", query)
    N = check_corpus("key", key)
    classes, num_classes = _classes(key_labels, N, num_classes, query.device)
    with torch.no_grad():
        neighbours = _neighbours(
            query, key, k, temperature, exclude_self,
            normalize=normalize, progress=progress, backend=backend,
        )  # fmt: skip
        scores = neighbours.shares(classes[neighbours.indices], num_classes)
        return KNNPrediction(scores.argmax(1).masked_fill(neighbours.nobody, -1), scores)


def knn_accuracy(
    query: Tensor,
    query_labels: Tensor,
    key: Tensor | numpy.ndarray | None = None,
    key_labels: Tensor | None = None,
    k: int = 20,
    *,
    temperature: float | None = 0.07,
    normalize: bool = True,
    group: Group | None = None,
    backend: str | None = None,
) -> float:
    """The share of queries that ``knn_classify`` puts into their class.

    Args:
        query: Embeddings, shape [M, D], finite.
        query_labels: Their classes, shape [M]: any integers, hashes too.
        key, key_labels: Labelled embeddings; None for leave-one-out among the queries.
        k, temperature, normalize, backend: As in ``knn_classify``. Memory is O(M k), however many
            classes there are.
        group: Of torch.distributed: queries and keys are those of all its ranks, of which each
            passes its own.
    """
    if (key is None) != (key_labels is None):
        given, missing = ("key", "key_labels") if key_labels is None else ("key_labels", "key")
        raise ValueError(f"{missing}: expected it together with {given}, got None")
    arguments: dict[str, Any] = {
        "query": query, "query_labels": query_labels, "k": k, "temperature": temperature,
        "key": query if key is None else key,
        "key_labels": query_labels if key_labels is None else key_labels,
        "exclude_self": key is None, "normalize": normalize, "backend": backend,
    }  # fmt: skip
    if group is not None:
        return of_all_ranks(_accuracy, arguments | {"group": group})
    return _accuracy(**arguments)


def _accuracy(
    query: Tensor,
    query_labels: Tensor,
    key: Tensor | numpy.ndarray,
    key_labels: Tensor,
    k: int,
    temperature: float | None,
    exclude_self: bool,
    **search: Any,
) -> float:
    check_finite_embeddings("query", query)
    truth = check_labels("query_labels", query_labels, len(query), "query", query.device)
    classes = check_labels("key_labels", key_labels, check_corpus("key", key), "key", query.device)
    with torch.no_grad():
        neighbours = _neighbours(query, key, k, temperature, exclude_self, **search)
        votes = classes[neighbours.indices]
        candidate = _ranks(votes)  # at most k classes stand for election
        elected = neighbours.shares(candidate, votes.shape[1]).argmax(1, keepdim=True)
        one_of_them = (candidate == elected).int().argmax(1, keepdim=True)
        right = (votes.gather(1, one_of_them)[:, 0] == truth) & ~neighbours.nobody
    return int(right.sum()) / len(query)


def _classes(
    key_labels: Tensor, N: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, int]:
    classes = check_labels("key_labels", key_labels, N, "key", device)
    low, high = int(classes.min()), int(classes.max())
    if num_classes is None:
        num_classes = max(1, min(high + 1, _MOST_CLASSES))
    else:
        check_count("num_classes", num_classes)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"key_labels: expected classes in [0, {num_classes}), got {low} to {high} "
            "(torch.unique(labels, return_inverse=True) makes classes of other labels)"
        )
    return classes, num_classes


@dataclass(frozen=True)
class _Neighbours:
    """The k neighbours of M queries: which keys, and their weights, [M, k].

    Where a query has fewer, key 0 fills up with weight 0.
    """

    indices: Tensor
    weights: Tensor
    nobody: Tensor  # [M], the queries without any

    def shares(self, votes: Tensor, num_classes: int) -> Tensor:
        """The share of each class, [M, num_classes], if the neighbours' classes are ``votes``."""
        scores = self.weights.new_zeros(len(votes), num_classes)
        # One neighbour of every query at a time: sums in a fixed order, on GPUs too.
        for vote, weight in zip(votes.split(1, dim=1), self.weights.split(1, dim=1), strict=True):
            scores.scatter_add_(1, vote, weight)
        return scores


def _neighbours(
    query: Tensor,
    key: Tensor | numpy.ndarray,
    k: int,
    temperature: float | None,
    exclude_self: bool,
    **search: Any,
) -> _Neighbours:
    check_count("k", k)
    if temperature is not None:
        check_number("temperature", temperature, "a positive number", lambda t: 0 < t < torch.inf)
    M, N = len(query), len(key)
    if exclude_self and M != N:
        raise ValueError(f"exclude_self: expected as many keys as queries, {M}, got {N}")
    index = torch.arange(M, device=query.device)
    itself = PairFilter(index, positions(key, query.device), "different")
    where = itself if exclude_self else ()
    values, indices = topk(query, key, min(k + 1, N), where=where, **search)
    tied_share(values, k)
    values, indices = values[:, :k], indices[:, :k]
    missing = indices < 0
    logits = torch.zeros_like(values) if temperature is None else values / temperature
    weights = logits.masked_fill(missing, -torch.inf).softmax(1).masked_fill(missing, 0)
    return _Neighbours(indices.clamp_min(0), weights, missing[:, 0])


def _ranks(labels: Tensor) -> Tensor:
    """Each row's labels [M, k] as 0, 1, ... in their order, equal ones alike."""
    ordered, order = labels.sort(1)
    rises = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0))
    return torch.empty_like(labels).scatter_(1, order, rises.cumsum(1))
