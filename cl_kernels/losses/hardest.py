"""Log-sum-exp over only the hardest negatives of each query."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels.calls import default_compute_dtype, number_tensor
from cl_kernels.checks import check_count
from cl_kernels.losses.batch import WHOLE, the_batch
from cl_kernels.pairs import PairFilter
from cl_kernels.search import topk

_FEW = 1 << 20  # numbers that may be gathered at once


class Negatives(NamedTuple):
    """A set of negatives and which of them count."""

    keys: Tensor  # shared [K, D], or each query's own [B, K, D]
    where: tuple[PairFilter, ...] = ()  # on shared ones
    counted: Tensor | None = None  # of each query's own, bool [B, K]
    of_batch: bool = False  # those of all processes, of which these are a part


def own_similarity(queries: Tensor, negatives: Negatives) -> Tensor:
    """Of each query with its own negatives, [B, K]."""
    keys = negatives.keys
    with torch.autocast(keys.device.type, enabled=False):
        return torch.matmul(keys, queries.unsqueeze(-1)).squeeze(-1)


def logsumexp_of(logits: Tensor, counted: Tensor | None) -> Tensor:
    """Over the last of [B, K], of those that count; -inf with zero gradient where none does."""
    if counted is None:
        return logits.logsumexp(1)
    some = counted.any(1, keepdim=True)  # an empty sum would have NaN for a gradient
    logits = torch.where(counted | ~some, logits, -torch.inf)
    return torch.where(some[:, 0], logits.logsumexp(1), -torch.inf)


def check_hardest(hardest: int | None) -> int | None:
    return None if hardest is None else check_count("hardest", hardest)


def gathered_hardest(
    query: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    hardest: int,
    *,
    where: tuple[PairFilter, ...],
    normalize: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor] | None:
    """Each query's hardest of shared keys as negatives of its own, [B * k, D], and which of them
    there are, bool [B, k]. None where they are many, to be gathered a part at a time, or where
    products are rounded."""
    (B, D), k = query.shape, min(hardest, keys.shape[0])
    rounded = default_compute_dtype(query) != accumulator(query)
    if torch.compiler.is_compiling() or rounded or not 0 < B * k * D <= _FEW:
        return None
    with torch.no_grad():
        towards = query * number_tensor(scale, query).sign()
        settings = {"normalize": normalize, "where": where, "backend": backend}
        indices = topk(towards, keys, k, **settings).indices
    return keys.index_select(0, indices.clamp_min(0).flatten()), indices >= 0


def hardest_logsumexp(
    queries: Tensor,
    negatives: Iterable[Negatives],
    scale: float | Tensor,
    hardest: int,
    *,
    compute_dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    """``log sum exp`` over each query's ``hardest`` largest logits among all its negatives.

    Args:
        queries: float32 rows, [B, D].
        negatives: Sets of them.
        scale: Inverse temperature; if it is negative the least similar keys are the hardest.
        hardest: How many.
        compute_dtype: Precision of the search; the logits found are float32.
        backend: Which backend serves the search.

    Returns:
        Shape [B]; -inf with zero gradient where there is no negative.
    """
    factor = number_tensor(scale, queries)
    towards = queries * factor.detach().sign()  # the hardest are the most similar to these
    found = []
    for some in negatives:
        if some.keys.dim() == 3:
            scores = own_similarity(towards, some)
            if some.counted is not None:
                scores = torch.where(some.counted, scores, -torch.inf)
            scores = scores.topk(min(hardest, scores.shape[1]), sorted=False).values
        else:
            scores = _shared(towards, some, hardest, compute_dtype, backend)
        found.append(scores)
    scores = torch.cat(found, 1)
    scores = scores.topk(min(hardest, scores.shape[1]), sorted=False).values
    filled = scores != -torch.inf
    return logsumexp_of(factor.abs() * torch.where(filled, scores, 0), filled)


def _shared(
    queries: Tensor,
    negatives: Negatives,
    hardest: int,
    compute_dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    """Similarities of the hardest of shared keys, [B, <= hardest]; -inf where there is none."""
    keys, batch = negatives.keys, the_batch() if negatives.of_batch else WHOLE
    k = min(hardest, batch.count(keys.shape[0]))
    if k == 0:
        return queries @ keys.T  # nothing, of which both have a gradient
    settings = {"normalize": False, "where": negatives.where, "backend": backend}
    if compute_dtype == queries.dtype and not batch.parted:
        return topk(queries, keys, k, **settings).values
    with torch.no_grad():
        rounded = queries.to(compute_dtype), keys.to(compute_dtype)
        indices = batch.topk(*rounded, k, **settings).indices
    return batch.similarities(queries, keys, indices)
