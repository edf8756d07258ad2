"""Who searches: a case and a name give one call, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import available_bytes
from benchmarks.search.cases import RANGE_ABOVE, SearchCase, embeddings, filters
from cl_kernels import range_search, topk

RIVALS = ("torch, whole", "torch, in chunks", "faiss IndexFlatIP", "semantic_search")
NEEDS = {"faiss IndexFlatIP": "faiss", "semantic_search": "sentence_transformers"}
CHUNK_QUERIES, CHUNK_KEYS = 100, 500_000  # the defaults of semantic_search


def missing(who: str, case: SearchCase) -> str | None:
    """Why this contestant cannot run here, or None."""
    package = NEEDS.get(who)
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed"
    matrix = 4 * case.queries * case.keys
    if who in ("product", "torch, whole") and 2 * matrix > available_bytes():
        return f"needs {2 * matrix / 1e9:.1f} GB"
    return None


def contestant(case: SearchCase, who: str) -> Callable[[], Any]:
    query, key = embeddings(case)
    if who in ("ours", "ours, unfiltered"):
        if case.kind == "range" and who == "ours":
            return lambda: range_search(query, key, above=RANGE_ABOVE)
        options = filters(case) if who == "ours" else {}
        return lambda: topk(query, key, case.k, **options)
    if who == "product":
        buffer = torch.ones(case.queries, case.keys)  # its pages are there already
        return lambda: torch.mm(query, key.T, out=buffer)
    if who == "torch, whole":
        return lambda: torch.topk(query @ key.T, case.k)
    if who == "torch, in chunks":
        return lambda: _in_chunks(query, key, case.k)
    if who == "faiss IndexFlatIP":
        return _faiss(query, key, case.k)
    from sentence_transformers.util import semantic_search

    return lambda: semantic_search(query, key, top_k=case.k)


def _in_chunks(query: Tensor, key: Tensor, k: int) -> list[torch.return_types.topk]:
    """As little memory as ours: a block of queries at a time."""
    return [torch.topk(block @ key.T, k) for block in query.split(CHUNK_QUERIES)]


def _faiss(query: Tensor, key: Tensor, k: int) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(key.shape[1])
    index.add(key.numpy())  # type: ignore[call-arg]  # the Python wrapper takes the array alone
    return lambda: index.search(query.numpy(), k)  # type: ignore[call-arg]
