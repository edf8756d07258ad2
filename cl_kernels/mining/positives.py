"""Scores of given pairs as the search computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels._dispatch import choose
from cl_kernels._ops import define
from cl_kernels._precision import accumulator
from cl_kernels.calls import Call, request_of
from cl_kernels.pairs import PairFilter, Pairs
from cl_kernels.search import topk
from cl_kernels.search.shards import ShardedKeys

_PAIRS = 256  # their products with one another are computed, for the diagonal


@torch.no_grad()
def pair_scores(
    query: Tensor,
    corpus: Tensor | ShardedKeys,
    rows: Tensor,
    keys: Tensor,
    *,
    normalize: bool,
    backend: str | None,
) -> Tensor:
    """The score of every pair (rows[n], keys[n]), [nnz]; -inf where it is not a number.

    A dot product taken by itself may differ in its last bit from the same pair's score in the
    search: a copy of the positive could then pass below a ceiling that equals its own score. So
    the pairs go through the search.
    """
    if isinstance(corpus, ShardedKeys):  # each is scored where its document is
        own = ((keys >= corpus.own.start) & (keys < corpus.own.stop)).nonzero().flatten()
        scores = query.new_zeros(len(keys), dtype=accumulator(query))
        pairs = rows[own], keys[own] - corpus.own.start
        scores[own] = pair_scores(query, corpus.key, *pairs, normalize=normalize, backend=backend)
        return corpus.ranks.sum(scores)
    arguments = query.detach(), corpus.detach(), rows, keys, normalize
    if torch.compiler.is_compiling():
        request = request_of("topk", query, Call(Pairs(), query.dtype, None))
        return _traced(*arguments, choose(backend, request))
    return _pair_scores(*arguments, backend)


def _pair_scores(query, corpus, rows, keys, normalize, backend):
    scores = query.new_empty(len(keys), dtype=accumulator(query))
    pair = torch.arange(_PAIRS, device=query.device)
    parts = (x.split(_PAIRS) for x in (rows, keys, scores))
    for queries, found, out in zip(*parts, strict=True):
        diagonal = PairFilter(pair[: len(found)], pair[: len(found)], "same")
        documents = corpus[found.to(corpus.device)].to(query.device)
        settings = {"normalize": normalize, "where": diagonal, "backend": backend}
        out[:] = topk(query[queries], documents, 1, **settings).values[:, 0]
    return scores


_traced = define(
    "pair_scores(Tensor query, Tensor corpus, Tensor rows, Tensor keys, bool normalize,"
    " str backend) -> Tensor",
    _pair_scores,
    lambda query, corpus, rows, keys, *_: query.new_empty(keys.shape, dtype=accumulator(query)),
)
