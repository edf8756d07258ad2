"""Retrieval metrics of a whole corpus, exact and without the M x N matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_kernels._precision import widest
from cl_kernels.checks import check_count
from cl_kernels.csr import CSR, Lists
from cl_kernels.ranks.group import Group
from cl_kernels.search import topk
from cl_kernels.search.stream import progress_bar

from .checks import check_corpus, check_finite_embeddings, check_labels
from .relevance import LabelRelevance, Relevance, as_relevance, exclusions
from .sharded import of_all_ranks
from .ties import Ranking

if TYPE_CHECKING:
    import numpy

_BLOCK = 1 << 19  # ranked keys held at a time: some 64 MB with all that is computed from them
_FIRST_LOOK = 256  # queries with few relevant keys mostly have them all among their best 256


class RetrievalMetrics(dict[str, float]):
    """Means over the queries that have a relevant key, by name.

    Attributes:
        per_query: Each metric of each query, [M], float64 where the device has it; NaN for a query
            without relevant key.
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
    group: Group | None = None,
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
    hundred, or whose score at the last rank looked at is another key's too, are ranked against
    every key, a few at a time: memory stays at some 64 MB, or that of one ranking of N keys, and
    time grows with N log N for each of them.

    Keys of equal scores count as if in random order: a metric is its expected value over all
    orders of them, in closed form (McSherry and Najork 2008), so that copies of a document, and
    embeddings that collapsed, are worth the same however the corpus is ordered. Queries without a
    relevant key are left out of the means and counted.

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
        group: Of torch.distributed: queries and keys are those of all its ranks, of which each
            passes its own; lists count the keys of all. Every rank gets the same result.

    Returns:
        A ``dict`` of floats, with the metrics of each query as ``.per_query``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    if group is not None:
        return of_all_ranks(retrieval_metrics, locals())
    check_finite_embeddings("query", query)
    if not isinstance(at, Sequence):
        raise TypeError(f"at: expected a sequence of cut-offs, got {type(at).__name__}")
    for k in at:
        check_count("at", k)
    M, N = len(query), check_corpus("key", key)
    relevance = as_relevance(relevant, M, N, query.device)
    excluded = exclusions(exclude, exclude_self, M, N, query.device)
    total = _relevant_left(relevance, excluded)
    answerable = total > 0
    if not bool(answerable.any()):
        raise ValueError("relevant: expected a query with a relevant key, got none")
    scan = _Scan(query, key, relevance, excluded, normalize, backend)

    per_query = _measured(scan, total, at, exact_map, progress)
    return RetrievalMetrics(per_query, answerable)


def mean_average_precision(
    embeddings: Tensor,
    labels: Tensor,
    *,
    normalize: bool = True,
    group: Group | None = None,
    backend: str | None = None,
) -> float:
    """Mean average precision of a labelled set, each item in turn the query for all others.

    Args:
        embeddings: Shape [N, D], finite.
        labels: Integer labels, shape [N]; items of the query's label are relevant. An item that
            is alone with its label is no query.
        normalize, backend: As in ``topk``.
        group: Of torch.distributed: the items are those of all its ranks.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
    """
    check_finite_embeddings("embeddings", embeddings)
    labels = check_labels("labels", labels, len(embeddings), "embeddings", embeddings.device)
    return retrieval_metrics(
        embeddings,
        embeddings,
        LabelRelevance(labels, labels),
        at=(),
        exclude_self=True,
        normalize=normalize,
        group=group,
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
    def blocks(self, rows: Tensor, depth: int) -> Iterator[tuple[Tensor, Ranking]]:
        """Blocks of the rows, [m], and their rankings to this depth."""
        for block in rows.split(max(1, _BLOCK // depth)) if len(rows) else ():
            found = topk(
                self.query[block],
                self.key,
                depth,
                exclude=self.excluded.gather(block),
                normalize=self.normalize,
                backend=self.backend,
            )
            hits = self.relevance.contains(block, found.indices)
            whole = depth == len(self.key)
            yield block, Ranking.of(found.values, hits, widest(hits.device), whole)


def _measured(
    scan: _Scan, total: Tensor, at: Sequence[int], exact_map: bool, progress: bool
) -> dict[str, Tensor]:
    """Each metric of each query, [M]: from its first ranks, and where they do not do, from all."""
    M, N = len(scan.query), len(scan.key)
    deepest = max(at, default=0)
    # One rank more shows whether the last that counts is tied with what comes after it.
    depth = min(N, max(deepest + 1, _FIRST_LOOK if exact_map else 0))
    names = [f"{name}@{k}" for k in at for name in ("recall", "hit", "mrr", "ndcg", "map")]
    names += ["map"] * exact_map
    dtype = widest(total.device)
    values = {name: total.new_full((M,), torch.nan, dtype=dtype) for name in names}
    left = total > 0
    with progress_bar(progress)(total=M, unit="query") as bar:
        bar.update(M - int(left.sum()))
        for looked_at in (depth, N):
            for rows, ranking in scan.blocks(left.nonzero().flatten(), looked_at):
                of_rows = total[rows]
                for k in at:
                    for name, at_k in _metrics_at(ranking, k, of_rows).items():
                        values[f"{name}@{k}"][rows] = at_k
                done = ranking.settled[:, :deepest].all(1)
                if exact_map:
                    values["map"][rows] = ranking.precision.sum(1) / of_rows
                    done &= ranking.settled[:, -1] | (ranking.found() == of_rows)
                left[rows] = ~done
                bar.update(int(done.sum()))
    return values


def _metrics_at(ranking: Ranking, k: int, total: Tensor) -> dict[str, Tensor]:
    """The metrics at k of queries with ``total`` [m] relevant keys."""
    gain, precision = ranking.gain[:, :k], ranking.precision[:, :k]
    none = ranking.miss[:, :k].cumprod(1)  # is relevant up to a rank
    rank = torch.arange(1, gain.shape[1] + 1, device=gain.device)
    discount = (rank + 1).to(gain.dtype).log2().reciprocal()
    possible = total.clamp_max(len(rank))
    ideal = discount.cumsum(0)[possible - 1]
    first = -none.diff(dim=1, prepend=torch.ones_like(none[:, :1]))  # relevant key is here
    return {
        "recall": gain.sum(1) / total,
        "hit": 1 - none[:, -1],
        "mrr": (first / rank).sum(1),
        "ndcg": gain @ discount / ideal,
        "map": precision.sum(1) / possible,
    }
