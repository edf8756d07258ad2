"""The library's searches of embeddings, by the exact search."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy
import torch
from sentence_transformers import util
from torch import Tensor

from cl_kernels.search import range_search, topk

from .common import normalizes

Similarity = Callable[[Tensor, Tensor], Tensor]


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: Similarity = util.cos_sim,
) -> list[list[dict[str, int | float]]]:
    """``sentence_transformers.util.semantic_search``: its arguments and results.

    Scores are streamed: no chunk is held, and the sizes of chunks change nothing.
    ``score_function`` is the library's ``cos_sim`` or ``dot_score``; others are refused, as are
    sparse embeddings.
    """
    normalize = normalizes(score_function, name="score_function")
    corpus = _rows("corpus_embeddings", corpus_embeddings)
    query = _rows("query_embeddings", query_embeddings).to(corpus.device)
    if top_k <= 0 or not len(corpus):
        return [[] for _ in query]
    found = topk(query, corpus, top_k, normalize=normalize)
    lists = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [
        [
            {"corpus_id": index, "score": score}
            for index, score in zip(indices, scores, strict=True)
            if index >= 0
        ]
        for indices, scores in lists
    ]


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100000,
    max_pairs: int = 500000,
    top_k: int = 100,
    score_function: Similarity = util.cos_sim,
) -> list[list[float | int]]:
    """``sentence_transformers.util.paraphrase_mining_embeddings``: its arguments and results, pairs
    of rows with their scores, best first; each row brings its ``top_k`` best others."""
    normalize = normalizes(score_function, name="score_function")
    rows = _rows("embeddings", embeddings)
    if top_k <= 0 or not len(rows):
        return []
    index = torch.arange(len(rows), device=rows.device)
    found = topk(rows, rows, top_k, normalize=normalize, exclude=index)
    known = found.indices >= 0
    first = index[:, None].expand_as(known)[known]
    second, scores = found.indices[known], found.values[known]
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    # A pair that both of its rows found is kept once, as the first of them has it.
    pair, order = (low * len(rows) + high).sort(stable=True)
    order = order[torch.cat((pair.new_ones(1, dtype=torch.bool), pair.diff() != 0))[: len(pair)]]
    order = order[scores[order].argsort(descending=True, stable=True)][:max_pairs]
    columns = (x[order].tolist() for x in (scores, low, high))
    return [list(pair) for pair in zip(*columns, strict=True)]


def paraphrase_mining(model: Any, sentences: list[str], *args: Any, **settings: Any) -> Any:
    """``sentence_transformers.util.paraphrase_mining``: its arguments and results."""
    given = signature(_theirs).bind(model, sentences, *args, **settings)
    given.apply_defaults()
    options = dict(given.arguments)
    of_search = {name: options.pop(name) for name in _OF_SEARCH if name in options}
    del options["model"], options["sentences"]
    embeddings = model.encode(sentences, convert_to_tensor=True, **options)
    return paraphrase_mining_embeddings(embeddings, **of_search)


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """``sentence_transformers.util.community_detection``: its arguments and results, by one search
    for all pairs above the threshold. The largest communities come first and take their rows."""
    rows = _rows("embeddings", embeddings)
    if len(rows) < max(min_community_size, 1):
        return []
    number = numpy.float64 if rows.dtype == torch.float64 else numpy.float32
    below = numpy.nextafter(number(threshold), number(-2))  # at it is inside
    (offsets, keys), _ = range_search(rows, rows, above=float(below), max_pairs=1 << 62)
    counts = offsets.diff()
    centers = counts.argsort(descending=True, stable=True)
    centers = centers[counts[centers] >= min_community_size].tolist()
    offsets, keys = offsets.tolist(), keys.cpu()
    taken, communities = torch.zeros(len(rows), dtype=torch.bool), []
    for center in centers:
        if taken[center]:
            continue
        members = keys[offsets[center] : offsets[center + 1]]
        members = members[~taken[members]]
        if len(members) >= min_community_size:
            community = [center, *members[members != center].tolist()]
            taken[community] = True
            communities.append(community)
    return sorted(communities, key=len, reverse=True)


def _rows(name: str, x: Any) -> Tensor:
    """Embeddings as the library takes them: a tensor, an array, lists, or one row."""
    if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor):
        x = torch.stack(tuple(x))
    rows = torch.as_tensor(x)
    if rows.layout != torch.strided:
        raise TypeError(f"{name}: expected dense embeddings, got {rows.layout}")
    rows = rows.detach() if rows.is_floating_point() else rows.float()
    if rows.dim() == 1:
        return rows[None] if len(rows) else rows.view(0, 1)
    return rows


_theirs = util.paraphrase_mining
_OF_SEARCH = set(signature(paraphrase_mining_embeddings).parameters) - {"embeddings"}

REPLACED = [
    (util.semantic_search, semantic_search),
    (util.paraphrase_mining_embeddings, paraphrase_mining_embeddings),
    (util.paraphrase_mining, paraphrase_mining),
    (util.community_detection, community_detection),
]
