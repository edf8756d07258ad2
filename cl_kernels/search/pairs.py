"""The most similar pairs of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels.checks import check_count, check_embeddings
from cl_kernels.pairs import Where

from .ranges import range_search
from .topk import as_tensor, topk

if TYPE_CHECKING:
    import numpy

_LOOKED_AT = 8  # keys of each query, for a bound


class BestPairs(NamedTuple):
    """Pairs of a query and a key, best first; equal scores in the order of queries, then of keys.
    Of those that score as the last does there may be more.

    Args:
        values: Their scores, [at most k].
        queries: int64, as many.
        keys: Likewise.
    """

    values: Tensor
    queries: Tensor
    keys: Tensor


def best_pairs(
    query: Tensor | numpy.ndarray,
    key: Tensor | numpy.ndarray | None = None,
    k: int = 100,
    *,
    normalize: bool = True,
    where: Where = (),
    backend: str | None = None,
) -> BestPairs:
    """The k most similar of all pairs: exact, never M x N.

    Args:
        query: Embeddings, shape [M, D]. float32, float16, bfloat16 or float64.
        key: Embeddings, shape [N, D]; also streamed from host memory, as ``topk`` takes them.
            Default: the queries; each pair of two rows is then one.
        k: How many; there may be fewer.
        normalize: Score by cosine; else by inner product.
        where: Up to three ``PairFilter``.
        backend: Which backend serves the searches.

    Returns:
        ``BestPairs(values, queries, keys)``. No gradient flows to them.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        values, first, second = best_pairs(embeddings, k=1000)  # the likeliest duplicates
    """
    queries = as_tensor(query, "query")
    check_embeddings("query", queries)
    k, queries = check_count("k", k), queries.detach()
    keys = queries if key is None else as_tensor(key)
    if not hasattr(keys, "shape"):
        raise TypeError(f"key: expected embeddings [N, D], got {type(key).__name__}")
    options = {"normalize": normalize, "where": where, "backend": backend}
    some = _of_each(queries, keys, k, key is None, options)
    if len(some.values) < k:  # they are all
        return _best(some, k)
    least = some.values.topk(k).values[-1]
    found = range_search(queries, key, above=least, max_pairs=1 << 62, **options)
    better = BestPairs(found.scores, found.keys.rows(), found.keys.keys)
    pair, known = (x.queries * len(keys) + x.keys for x in (some, better))
    left = (some.values == least) & ~torch.isin(pair, known)
    last = BestPairs(*(x[left] for x in some))
    return _best(BestPairs(*map(torch.cat, zip(better, last, strict=True))), k)


def _of_each(queries: Tensor, keys: Any, k: int, itself: bool, options) -> BestPairs:
    """The best pairs of each query: at least k in all, or all."""
    looked_at = min(_LOOKED_AT, max(len(keys), 1))
    while True:
        found = topk(queries, keys, looked_at, **options)
        rows = torch.arange(len(queries), device=queries.device)[:, None]
        kept = found.indices > rows if itself else found.indices >= 0
        rows = rows.expand_as(kept)[kept]
        if len(rows) >= k or looked_at >= len(keys):
            return BestPairs(found.values[kept], rows, found.indices[kept])
        looked_at = min(4 * looked_at, len(keys))


def _best(pairs: BestPairs, k: int) -> BestPairs:
    values, queries, keys = pairs
    # Sorted by keys, queries and scores in turn, each time stably.
    order = keys.argsort(stable=True)
    order = order[queries[order].argsort(stable=True)]
    order = order[values[order].argsort(descending=True, stable=True)][:k]
    return BestPairs(values[order], queries[order], keys[order])
