"""Mining from a corpus that several processes have parts of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_kernels.checks import check_embeddings, check_filters
from cl_kernels.csr import CSR, as_csr
from cl_kernels.pairs import PairFilter, as_filters
from cl_kernels.ranks.agreement import Entry, agree, described, together
from cl_kernels.ranks.group import Ranks, without_compiling
from cl_kernels.search import as_tensor
from cl_kernels.search.shards import ShardedKeys, gathered_lists

if TYPE_CHECKING:
    from cl_kernels.mining.result import MinedNegatives

_CUT = {"query", "corpus", "positives", "where", "generator"}


@without_compiling
def over_shards(
    mine: Callable[..., MinedNegatives], arguments: Mapping[str, Any]
) -> MinedNegatives:
    """``mine_hard_negatives`` of this rank's queries from the documents of all ranks; takes its
    arguments by name."""
    given = dict(arguments)
    ranks = Ranks(given.pop("group"))
    if ranks.size == 1:
        return mine(**given)
    query, corpus = as_tensor(given["query"], "query"), as_tensor(given["corpus"], "corpus")
    device = query.device if isinstance(query, Tensor) else torch.device("cpu")
    filters = together(ranks, "mine_hard_negatives", lambda: _filters(query, corpus, given), device)
    entries = [
        Entry("query", described(query.detach(), cut=True), len(query)),
        Entry("corpus", f"{corpus.dtype} [documents, {corpus.shape[1]}]", len(corpus)),
        Entry("where", described(filters)),
        *(Entry(name, described(x)) for name, x in given.items() if name not in _CUT),
    ]
    rows, documents = agree(ranks, "mine_hard_negatives", entries, device)[:2]

    def positives() -> CSR:
        return as_csr("positives", given["positives"], len(query), sum(documents), device)

    known = together(ranks, "positives", positives, device)
    given |= {
        "query": ranks.rows(query.detach(), rows),
        "corpus": ShardedKeys(ranks, corpus, documents),
        "positives": gathered_lists(ranks, known, rows),
        "where": [PairFilter(ranks.rows(f.query_ids, rows), f.key_ids, f.keep) for f in filters],
    }
    own = slice(sum(rows[: ranks.rank]), sum(rows[: ranks.rank + 1]))
    return mine(**given).of_queries(own)


def _filters(query: Any, corpus: Any, given: Mapping[str, Any]) -> tuple[PairFilter, ...]:
    for name, x in (("query", query), ("corpus", corpus)):
        check_embeddings(name, x)
    filters = as_filters(given["where"], most=2)
    return check_filters(filters, (len(query), len(corpus)), query.device)
