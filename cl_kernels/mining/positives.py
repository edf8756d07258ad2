"""Scores of given pairs as the search computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels.csr import CSR
from cl_kernels.pairs import PairFilter
from cl_kernels.search import topk

_PAIRS = 256  # their products with one another are computed, for the diagonal


@torch.no_grad()
def pair_scores(
    query: Tensor, corpus: Tensor, pairs: CSR, *, normalize: bool, backend: str | None
) -> Tensor:
    """The score of every listed pair, [nnz]; -inf where it is not a number.

    A dot product taken by itself may differ in its last bit from the same pair's score in the
    search: a copy of the positive could then pass below a ceiling that equals its own score. So
    the pairs go through the search.
    """
    scores = query.new_empty(
        len(pairs.keys), dtype=torch.float64 if query.dtype == torch.float64 else torch.float32
    )
    pair = torch.arange(_PAIRS, device=query.device)
    for queries, keys, out in zip(
        pairs.rows().split(_PAIRS), pairs.keys.split(_PAIRS), scores.split(_PAIRS), strict=True
    ):
        diagonal = PairFilter(pair[: len(keys)], pair[: len(keys)], "same")
        documents = corpus[keys.to(corpus.device)].to(query.device)
        out[:] = topk(
            query[queries], documents, 1, normalize=normalize, where=diagonal, backend=backend
        ).values[:, 0]
    return scores
