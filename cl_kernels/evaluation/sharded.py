"""Metrics of the queries and the keys of several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_kernels.csr import as_csr
from cl_kernels.ranks.agreement import Entry, agree, described, together
from cl_kernels.ranks.group import Ranks, without_compiling
from cl_kernels.search.shards import ShardedKeys, gathered_lists

from .checks import check_corpus, check_finite_embeddings, check_labels
from .relevance import LabelRelevance

_LISTS = ("relevant", "exclude")  # in one order on every rank
_LABELS = {"query_labels": "query", "key_labels": "key"}


@without_compiling
def of_all_ranks(metric: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What a metric is of the queries of all ranks, among the keys of all; on every rank.

    Args:
        metric: One of the evaluations.
        arguments: All that it takes, by name, with this rank's queries and keys.
    """
    given = dict(arguments)
    ranks, name = Ranks(given.pop("group")), metric.__name__
    if ranks.size == 1:
        return metric(**given)
    query, key = given["query"], given["key"]
    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    given |= together(ranks, name, lambda: _labels(given), device)
    settings = {n: x for n, x in given.items() if n not in {"query", "key", *_LABELS, *_LISTS}}
    entries = [
        Entry("query", described(query.detach(), cut=True), len(query)),
        Entry("key", f"{key.dtype} [keys, {key.shape[1]}]", len(key)),
        *(Entry(n, described(x)) for n, x in settings.items()),
        *(Entry(n, type(given[n]).__name__) for n in _LISTS if n in given),
    ]
    rows, keys = agree(ranks, name, entries, device)[:2]
    if given.get("exclude_self") and rows != keys:
        raise ValueError(f"exclude_self: expected as many keys as queries on each rank, {rows}")
    lists = together(ranks, name, lambda: _lists(given, sum(keys)), device)
    given |= {n: gathered_lists(ranks, found, rows) for n, found in lists.items()}
    counts = {"query": rows, "key": keys}
    for labels, of in _LABELS.items():
        if labels in given:
            given[labels] = ranks.rows(given[labels], counts[of])
    relevant = given.get("relevant")
    if isinstance(relevant, LabelRelevance):
        of_queries, of_keys = ranks.rows(relevant.query_labels, rows), relevant.key_labels
        given["relevant"] = LabelRelevance(of_queries, ranks.rows(of_keys, keys))
    given |= {"query": ranks.rows(query.detach(), rows), "key": ShardedKeys(ranks, key, keys)}
    found = metric(**given)
    if not isinstance(found, tuple):
        return found
    own = slice(sum(rows[: ranks.rank]), sum(rows[: ranks.rank + 1]))  # predictions
    return type(found)(*(x[own] for x in found))


def _labels(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a rank's queries and keys, as int64; all else is checked too."""
    query = given["query"]
    check_finite_embeddings("query", query)
    sizes = {"query": len(query), "key": check_corpus("key", given["key"])}

    def checked(name: str, labels: Tensor, of: str) -> Tensor:
        return check_labels(name, labels, sizes[of], of, query.device)

    found: dict[str, Any] = {n: checked(n, given[n], of) for n, of in _LABELS.items() if n in given}
    relevant = given.get("relevant")
    if isinstance(relevant, LabelRelevance):
        of_queries = checked("relevant.query_labels", relevant.query_labels, "query")
        of_keys = checked("relevant.key_labels", relevant.key_labels, "key")
        found["relevant"] = LabelRelevance(of_queries, of_keys)
    return found


def _lists(given: Mapping[str, Any], keys: int) -> dict[str, Any]:
    """Those of a rank's queries that are lists of keys."""
    query = given["query"]
    return {
        name: as_csr(name, given[name], len(query), keys, query.device)
        for name in _LISTS
        if given.get(name) is not None and not isinstance(given[name], LabelRelevance)
    }
