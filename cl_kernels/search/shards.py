"""A search of keys that several processes have parts of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_kernels.checks import as_bound, check_embeddings, check_filters
from cl_kernels.csr import CSR, left_out
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.agreement import Entry, agree, described, together
from cl_kernels.ranks.group import Ranks, without_compiling

from .scores import TopK

Search = Callable[..., TopK]


class ShardedKeys:
    """The keys of all ranks, of which each holds its own: rank 0's come first.

    Args:
        ranks: The processes.
        key: This rank's, [n, D], whatever ``topk`` takes.
        counts: How many each rank has.
    """

    def __init__(self, ranks: Ranks, key: Any, counts: Sequence[int]):
        self.ranks, self.key = ranks, key
        first = sum(counts[: ranks.rank])
        self.own = slice(first, first + counts[ranks.rank])
        self.shape = sum(counts), key.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def lists(self, lists: CSR) -> CSR:
        """Of lists of keys of all ranks what names this rank's, counted from its first."""
        return lists.between(self.own.start, self.own.stop)

    def search(
        self,
        search: Search,
        query: Tensor,
        k: int,
        *,
        rows: Sequence[int] | None = None,
        exclude: Any = None,
        largest: bool = True,
        **options: Any,
    ) -> TopK:
        """The best keys of queries that every rank has alike.

        Args:
            search: ``topk``, of this rank's keys.
            query: [M, D].
            k: How many.
            rows: Of how many of the queries each rank wants to know; default: all of all.
            exclude: Lists of keys of all ranks.
            largest, options: As ``topk`` takes them, filters with the ids of this rank's keys.
        """
        if exclude is not None:
            of_all = left_out("exclude", exclude, len(query), len(self), query.device)
            exclude = self.lists(of_all)
        found = search(query, self.key, k, exclude=exclude, largest=largest, **options)
        indices = torch.where(found.indices < 0, -1, found.indices + self.own.start)
        values, indices = (self._of_all(x.contiguous(), rows) for x in (found.values, indices))
        return _merged(values, indices, k, largest)

    def _of_all(self, x: Tensor, rows: Sequence[int] | None) -> Tensor:
        """What every rank found for the queries, [ranks, M, k]."""
        return self.ranks.all(x) if rows is None else self.ranks.versions_of_own(x, rows)


def _merged(values: Tensor, indices: Tensor, k: int, largest: bool) -> TopK:
    """Best first; of equal ones those of the first ranks, whose indices are smaller."""
    values, indices = (x.transpose(0, 1).flatten(1) for x in (values, indices))
    order = torch.sort(values, dim=1, descending=largest, stable=True).indices[:, :k]
    return TopK(values.gather(1, order), indices.gather(1, order))


def positions(key: Any, device: torch.device) -> Tensor:
    """The index of each key that is here among all."""
    if isinstance(key, ShardedKeys):
        return torch.arange(key.own.start, key.own.stop, device=device)
    return torch.arange(len(key), device=device)


@without_compiling
def over_shards(topk: Search, arguments: Mapping[str, Any]) -> TopK:
    """``topk`` of this rank's queries among the keys of all ranks; its arguments by name."""
    given = dict(arguments)
    ranks = Ranks(given.pop("group"))
    if ranks.size == 1:
        return topk(**given)
    query, key = given.pop("query"), given.pop("key")
    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    query = together(ranks, "topk", lambda: _checked(query, key, given), device)
    entries = [
        Entry("query", described(query.detach(), cut=True), len(query)),
        Entry("key", f"{key.dtype} [keys, {key.shape[1]}]", len(key)),
        *(Entry(name, described(x, cut=name in _OF_QUERIES)) for name, x in given.items()),
    ]
    rows, keys = agree(ranks, "topk", entries, device)[:2]
    shards = ShardedKeys(ranks, key, keys)
    exclude, keep = given.pop("exclude"), given.pop("keep")
    lists = together(ranks, "exclude", lambda: _lists(exclude, keep, query, shards), device)
    if lists is not None:
        given["exclude"] = gathered_lists(ranks, lists, rows)
    given["keep"] = None if keep is None else ranks.rows(keep, rows)[:, shards.own]
    for name in ("below", "above"):
        given[name] = None if given[name] is None else ranks.rows(given[name], rows)
    filters = ((ranks.rows(f.query_ids, rows), f.key_ids, f.keep) for f in given["where"])
    given["where"] = [PairFilter(*one) for one in filters]
    return shards.search(topk, ranks.rows(query, rows), rows=rows, **given)


_OF_QUERIES = {"where", "exclude", "keep", "below", "above"}


def _checked(query: Any, key: Any, given: dict[str, Any]) -> Tensor:
    """The query, in the dtype of the keys; bounds as vectors and filters as a tuple."""
    check_embeddings("query", query)
    if getattr(key, "ndim", 0) != 2:
        raise ValueError(f"key: expected embeddings [N, D], got {described(key)}")
    trained = (isinstance(x, Tensor) and x.requires_grad for x in (query, key))
    if torch.is_grad_enabled() and any(trained):
        raise ValueError("query: expected no gradient with a group, whose keys lie elsewhere")
    for name in ("below", "above"):
        given[name] = as_bound(name, given[name], query)
    given["where"] = check_filters(given["where"], (len(query), len(key)), query.device)
    keep = given["keep"]
    if keep is not None and not (isinstance(keep, Tensor) and keep.dtype == torch.bool):
        raise TypeError(f"keep: expected a boolean tensor [M, N], got {described(keep)}")
    return query


def _lists(exclude: Any, keep: Tensor | None, query: Tensor, shards: ShardedKeys) -> CSR | None:
    if keep is not None and keep.shape != (len(query), len(shards)):
        expected = [len(query), len(shards)]
        raise ValueError(f"keep: expected shape {expected}, got {list(keep.shape)}")
    if exclude is None:
        return None
    return left_out("exclude", exclude, len(query), len(shards), query.device)


def gathered_lists(ranks: Ranks, lists: CSR, rows: Sequence[int]) -> CSR:
    """Of the queries of all ranks, so many of each."""
    counts = ranks.rows(lists.counts(), rows)
    nnz = [int(n) for n in ranks.all(torch.tensor(len(lists.keys), device=lists.keys.device))]
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    return CSR(offsets, ranks.rows(lists.keys, nnz))
