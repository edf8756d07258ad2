"""Hard negatives from a corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from cl_kernels._numbers import check_integer
from cl_kernels.checks import check_embeddings, check_filters, check_matches
from cl_kernels.csr import Lists, as_csr
from cl_kernels.mining.criteria import Criteria
from cl_kernels.mining.positives import pair_scores
from cl_kernels.mining.result import MinedNegatives
from cl_kernels.mining.sharded import over_shards
from cl_kernels.mining.tally import CorpusTally, Tally
from cl_kernels.pairs import Where, as_filters
from cl_kernels.ranks.group import Group
from cl_kernels.search import TopK, as_tensor, topk
from cl_kernels.search.shards import ShardedKeys

if TYPE_CHECKING:
    import numpy


@torch.no_grad()
def mine_hard_negatives(
    query: Tensor | numpy.ndarray,
    corpus: Tensor | numpy.ndarray,
    positives: Lists,
    *,
    num_negatives: int = 3,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    margin_against: Literal["min", "max", "mean"] = "min",
    where: Where = (),
    sampling: Literal["top", "random", "softmax"] = "top",
    sampling_temperature: float = 0.05,
    generator: torch.Generator | None = None,
    return_scores: bool = True,
    candidates: int | None = None,
    normalize: bool = True,
    progress: bool = False,
    group: Group | None = None,
    backend: str | None = None,
) -> MinedNegatives:
    """The documents most similar to each query that are not its positives.

    Every filter is applied inside the exact search of the whole corpus: a query is short of
    negatives only if fewer valid candidates exist, and ``shortfall`` then says what removed the
    others. Miners that take the best few hundred first and filter afterwards leave queries short.

    Scores are cosines (inner products without ``normalize``). A negative scores strictly below
    ``max_score``, ``s - absolute_margin`` and ``s - |s| * relative_margin``, where s is the score
    of the query's positive, and strictly above ``min_score``. (Moreira et al., "NV-Retriever"
    (2024), take a relative margin of 0.05: "TopK-PercPos".)

    Ranks count the candidates that pass every filter, from 0: ``range_min=10`` skips the ten
    hardest negatives. sentence-transformers counts ranks before it filters, positives included.

    Args:
        query: Embeddings, shape [M, D]. float32, float16, bfloat16 or float64; cast to the dtype
            of the corpus where they differ.
        corpus: Embeddings, shape [N, D]: on the device of ``query``, or in host memory, or a
            NumPy array or memory map (streamed to the device).
        positives: Which documents are positives of each query: index tensor [M], [M, P] padded
            with -1, ``CSR``, a boolean [M, N], or Python lists. They are never mined. Copies of
            them under another index may be; drop those with ``where`` and hashes of the texts.
        num_negatives: How many for each query.
        range_min: The first rank that is taken.
        range_max: The end of the ranks that are taken. Default: ``range_min + num_negatives``
            for ``"top"``; 100 for ``"random"`` and ``"softmax"``, or as many as they need.
        max_score, min_score: Bounds on the scores of negatives.
        absolute_margin, relative_margin: How far below the positive negatives must score. A query
            without positives is not bounded by them.
        margin_against: Of several positives take the one with the lowest score (the strictest),
            the highest, or the mean of their scores.
        where: Up to two ``PairFilter``; a candidate is kept if every filter keeps it.
        sampling: Take the first ranks, or draw without replacement from all ranks of the window:
            evenly, or with weights ``exp(score / sampling_temperature)``.
        sampling_temperature: For ``"softmax"``; near zero it is ``"top"``.
        generator: For the draw, which is made on its device. Default: torch's, on the CPU, so
            that one seed gives the same negatives on every device.
        return_scores: Whether to keep the scores of negatives and positives.
        candidates: Also hand back this many of the best candidates that pass the same filters,
            for another model to rescore; see ``MinedNegatives.rescore``.
        normalize: Score by cosine.
        progress: Show a progress bar (needs tqdm).
        group: Of torch.distributed: the corpus is that of all its ranks, rank 0's documents first,
            of which each passes its own (and their ids in ``where``). Queries are this rank's;
            ``positives`` and the indices found count the documents of all.
        backend: Which backend serves the search.

    Returns:
        ``MinedNegatives``; its ``indices`` [M, num_negatives] are ordered by rank, -1 where no
        candidate was left. Gradients do not flow through it.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
        ImportError: If ``progress`` is asked for without tqdm.
    """
    if group is not None:
        return over_shards(mine_hard_negatives, locals())
    criteria = Criteria(
        num_negatives, range_min, range_max, max_score, min_score, absolute_margin,
        relative_margin, margin_against, sampling, sampling_temperature,
    )  # fmt: skip
    queries, documents = _as_embeddings(query, corpus)
    here = documents.key if isinstance(documents, ShardedKeys) else documents
    shape = len(queries), len(here)
    filters = check_filters(as_filters(where, most=2), shape, queries.device)
    if candidates is not None:
        check_integer("candidates", candidates, least=1)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    known = as_csr("positives", positives, len(queries), len(documents), queries.device)

    known_scores = pair_scores(
        queries, documents, known.rows(), known.keys, normalize=normalize, backend=backend
    )
    ceilings = criteria.ceilings(known, known_scores)
    finite = None if normalize else torch.inf  # inner products may overflow
    found = topk(
        queries,
        cast(Tensor, documents),
        max(criteria.last_rank, candidates or 0),
        normalize=normalize,
        where=filters,
        exclude=known,
        below=torch.stack(list(ceilings.values())).amin(0) if ceilings else finite,
        above=min_score,
        progress=progress,
        backend=backend,
    )
    chosen = criteria.choose(found, generator)
    counts = (chosen.indices >= 0).sum(1)
    short = Tally(counts, found, criteria, ceilings)
    account = CorpusTally(short, queries, documents, known, filters, normalize)
    return MinedNegatives(
        indices=chosen.indices,
        scores=chosen.values if return_scores else None,
        counts=counts,
        shortfall=short.shortfall(len(documents), account.removed()),
        positives=known,
        positive_scores=known_scores if return_scores else None,
        candidates=None if candidates is None else TopK(*(x[:, :candidates] for x in found)),
        criteria=criteria,
        num_documents=len(documents),
    )


def _as_embeddings(query: Tensor | numpy.ndarray, corpus: Any) -> tuple[Tensor, Any]:
    """Queries in the dtype of the documents, checked to be alike."""
    if isinstance(corpus, ShardedKeys):
        queries, corpus.key = _as_embeddings(query, corpus.key)
        return queries, corpus
    queries: Tensor = as_tensor(query, "query")
    documents: Tensor = as_tensor(corpus, "corpus")
    check_embeddings("query", queries)
    check_embeddings("corpus", documents)
    queries = queries.to(documents.dtype)
    on_host = documents.device.type == "cpu"  # streamed if the queries are elsewhere
    like = documents[:0].to(queries.device) if on_host else documents
    check_matches("corpus", like, "query", queries)
    return queries, documents
