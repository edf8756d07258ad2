"""Retrieval metrics of a whole corpus, exact and without the M x N matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_kernels.checks import check_count
from cl_kernels.csr import CSR, Lists
from cl_kernels.search import topk
from cl_kernels.search.stream import progress_bar

from .checks import check_finite_embeddings, check_labels
from .relevance import LabelRelevance, Relevance, as_relevance, exclusions

if TYPE_CHECKING:
    import numpy

_BLOCK = 1 << 20  # ranked keys held at a time: some 64 MB with all that is computed from them
_FIRST_LOOK = 256  # queries with few relevant keys mostly have them all among their best 256


class RetrievalMetrics(dict[str, float]):
    """Means over the queries that have a relevant key, by name.

    Attributes:
        per_query: Each metric of each query, float64 [M]; NaN for a query without relevant key.
        queries: How many queries the means are over.
        skipped: How many queries had no relevant key.
    """

    per_query: dict[str, Tensor]
    queries: int
    skipped: int

    def __init__(self, per_query: dict[str, Tensor], answerable: Tensor) -> None:
        super().__init__({name: x[answerable].mean().item() for name, x in per_query.items()})
        self.per_query = per_query
        self.queries = int(answerable.sum())
        self.skipped = len(answerable) - self.queries

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        left_out = f" ({self.skipped} without a relevant key left out)" if self.skipped else ""
        lines = [f"{name:{width}s}  {value:.4f}" for name, value in self.items()]
        return "\n".join([*lines, f"{self.queries} queries{left_out}"])


def retrieval_metrics(
    query: Tensor,
    key: Tensor | numpy.ndarray,
    relevant: LabelRelevance | Lists,
    *,
    at: Sequence[int] = (1, 10),
    exact_map: bool = True,
    exclude: Lists | None = None,
    exclude_self: bool = False,
    normalize: bool = True,
    progress: bool = False,
    backend: str | None = None,
) -> RetrievalMetrics:
    """How well the queries retrieve their relevant keys from the whole corpus.

    For each k of ``at``, with R relevant keys and binary gains:

    - ``recall@k``: the share of the relevant keys among the k best;
    - ``hit@k``: whether any relevant key is among them. Papers that rank one positive, or images
      of a class, often call this recall@k; for one positive a query the two agree;
    - ``mrr@k``: 1 / rank of the first relevant key, 0 if it is beyond k;
    - ``ndcg@k``: sum of 1 / log2(1 + rank) over the relevant keys among the k best, divided by
      the same sum for the min(R, k) first ranks (Järvelin and Kekäläinen 2002);
    - ``map@k``: precision at the ranks of the relevant keys among the k best, summed and divided
      by min(R, k).

    ``map`` is the mean of the average precision over the whole ranking (Manning, Raghavan and
    Schütze 2008, section 8.4). Queries whose relevant keys are not all among their first few
    hundred are ranked against every key, a few at a time: memory stays at some 64 MB, or that of
    one ranking of N keys, and time grows with N log N for each of them.

    Equal scores are ordered by key index, as in ``topk``. Queries without a relevant key are left
    out of the means and counted.

    Args:
        query: Embeddings, shape [M, D], finite.
        key: The corpus, shape [N, D]: all that ``topk`` takes, host memory and memory maps too. A
            key with a NaN is never retrieved.
        relevant: The relevant keys: one a query [M], [M, P] padded with -1, ``CSR``, or
            ``label_relevance(query_labels, key_labels)``. Repetitions count once.
        at: The cut-offs k; may exceed N.
        exact_map: Compute ``map`` too.
        exclude: Keys that a query must not retrieve, in the forms of ``topk``. An excluded key
            counts neither as a wrong answer nor as a relevant one.
        exclude_self: Query i is key i and must not retrieve itself.
        normalize, backend: As in ``topk``.
        progress: Show a progress bar (needs tqdm).

    Returns:
        A ``dict`` of floats, with the metrics of each query as ``.per_query``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    check_finite_embeddings("query", query)
    if not isinstance(at, Sequence):
        raise TypeError(f"at: expected a sequence of cut-offs, got {type(at).__name__}")
    for k in at:
        check_count("at", k)
    M, N = len(query), len(key)
    if N == 0:
        raise ValueError("key: expected at least one row, got none")
    relevance = as_relevance(relevant, M, N, query.device)
    excluded = exclusions(exclude, exclude_self, M, N, query.device)
    total = _relevant_left(relevance, excluded)
    answerable = total > 0
    if not bool(answerable.any()):
        raise ValueError("relevant: expected a query with a relevant key, got none")
    scan = _Scan(query, key, relevance, excluded, normalize, backend)

    depth = min(N, max([*at, _FIRST_LOOK] if exact_map else at, default=1))
    names = [f"{name}@{k}" for k in at for name in ("recall", "hit", "mrr", "ndcg", "map")]
    per_query = {
        name: query.new_full((M,), torch.nan, dtype=torch.float64)
        for name in names + ["map"] * exact_map
    }
    with progress_bar(progress)(total=M, unit="query") as bar:
        bar.update(M - int(answerable.sum()))
        for rows, hits in scan.blocks(answerable.nonzero().flatten(), depth):
            of_rows = total[rows]
            for k in at:
                for name, scores in _metrics_at(hits[:, :k], of_rows).items():
                    per_query[f"{name}@{k}"][rows] = scores
            done = torch.ones_like(of_rows, dtype=torch.bool)
            if exact_map:
                done = hits.sum(1) == of_rows
                per_query["map"][rows[done]] = _average_precision(hits[done], of_rows[done])
            bar.update(int(done.sum()))
        if exact_map:
            ranked_too_low = answerable & per_query["map"].isnan()
            for rows, hits in scan.blocks(ranked_too_low.nonzero().flatten(), N):
                per_query["map"][rows] = _average_precision(hits, total[rows])
                bar.update(len(rows))
    return RetrievalMetrics(per_query, answerable)


def mean_average_precision(
    embeddings: Tensor, labels: Tensor, *, normalize: bool = True, backend: str | None = None
) -> float:
    """Mean average precision of a labelled set, each item in turn the query for all others.

    Args:
        embeddings: Shape [N, D], finite.
        labels: Integer labels, shape [N]; items of the query's label are relevant. An item that
            is alone with its label is no query.
        normalize, backend: As in ``topk``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    check_finite_embeddings("embeddings", embeddings)
    labels = check_labels("labels", labels, len(embeddings), "embeddings")
    return retrieval_metrics(
        embeddings,
        embeddings,
        LabelRelevance(labels, labels),
        at=(),
        exclude_self=True,
        normalize=normalize,
        backend=backend,
    )["map"]


def _relevant_left(relevance: Relevance, excluded: CSR) -> Tensor:
    """How many relevant keys each query has that are not excluded, [M]."""
    total = relevance.counts()
    if len(excluded.keys) == 0:
        return total
    rows = excluded.rows()
    lost = rows[relevance.contains(rows, excluded.keys[:, None])[:, 0]]
    return total - torch.bincount(lost, minlength=len(total))


@dataclass(frozen=True)
class _Scan:
    query: Tensor
    key: Tensor | numpy.ndarray
    relevance: Relevance
    excluded: CSR
    normalize: bool
    backend: str | None

    @torch.no_grad()
    def blocks(self, rows: Tensor, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of the rows, [m], and whether the key at each rank is relevant, [m, depth]."""
        for block in rows.split(max(1, _BLOCK // depth)) if len(rows) else ():
            found = topk(
                self.query[block],
                self.key,
                depth,
                exclude=self.excluded.gather(block),
                normalize=self.normalize,
                backend=self.backend,
            )
            yield block, self.relevance.contains(block, found.indices)


def _metrics_at(hits: Tensor, total: Tensor) -> dict[str, Tensor]:
    """The metrics at k of queries with ``total`` [m] relevant keys, from ``hits`` [m, k]."""
    hits = hits.double()
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    found = hits.sum(1)
    first = hits.argmax(1).double() + 1
    discount = (rank + 1).double().log2().reciprocal()
    possible = total.clamp_max(hits.shape[1])
    ideal = discount.cumsum(0)[possible - 1]
    return {
        "recall": found / total,
        "hit": (found > 0).double(),
        "mrr": torch.where(found > 0, 1 / first, 0),
        "ndcg": hits @ discount / ideal,
        "map": _average_precision(hits, possible),
    }


def _average_precision(hits: Tensor, total: Tensor) -> Tensor:
    """Precisions at the ranks of the hits [m, k], summed and divided by ``total`` [m]."""
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = hits.cumsum(1, dtype=torch.float64).div_(rank)
    return precision.mul_(hits).sum(1) / total
