"""Log-sum-exp over only the hardest negatives of each query."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cl_kernels.functional import scale_tensor
from cl_kernels.pairs import PairFilter
from cl_kernels.search import topk
from cl_kernels.search.gradients import FoundScores

_GATHERED = 1 << 22  # numbers gathered at a time

Negatives = tuple[Tensor, tuple[PairFilter, ...]]  # keys and the filters on them


def check_hardest(hardest: int | None) -> None:
    if hardest is None:
        return
    if isinstance(hardest, bool) or not isinstance(hardest, int):
        raise TypeError(f"hardest: expected an integer or None, got {type(hardest).__name__}")
    if hardest < 1:
        raise ValueError(f"hardest: expected at least 1, got {hardest}")


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
        negatives: Sets of keys, shared [K, D] or each query's own [B, K, D].
        scale: Inverse temperature; if it is negative the least similar keys are the hardest.
        hardest: How many.
        compute_dtype: Precision of the search; the logits found are float32.
        backend: Which backend serves the search.

    Returns:
        Shape [B]; -inf with zero gradient where there is no negative.
    """
    factor = scale_tensor(scale, queries)
    towards = queries * factor.detach().sign()  # the hardest are the most similar to these
    found = []
    for keys, where in negatives:
        if keys.dim() == 3:
            with torch.autocast(keys.device.type, enabled=False):
                scores = torch.matmul(keys, towards.unsqueeze(-1)).squeeze(-1)  # [B, K]
            scores = scores.topk(min(hardest, scores.shape[1]), sorted=False).values
        else:
            scores = _shared(towards, keys, hardest, where, compute_dtype, backend)
        found.append(scores)
    scores = torch.cat(found, 1)
    scores = scores.topk(min(hardest, scores.shape[1]), sorted=False).values
    filled = scores != -torch.inf
    logits = factor.abs() * torch.where(filled, scores, 0)
    some = filled.any(1, keepdim=True)  # an empty sum would have NaN for a gradient
    logits = torch.where(filled | ~some, logits, -torch.inf)
    return torch.where(some[:, 0], logits.logsumexp(1), -torch.inf)


def _shared(
    queries: Tensor,
    keys: Tensor,
    hardest: int,
    where: tuple[PairFilter, ...],
    compute_dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    """Similarities of the hardest of shared keys, [B, <= hardest]; -inf where there is none."""
    if len(keys) == 0:
        return queries.new_empty(len(queries), 0)
    k = min(hardest, len(keys))
    settings = {"normalize": False, "where": where, "backend": backend}
    if compute_dtype == queries.dtype:
        return topk(queries, keys, k, **settings).values
    with torch.no_grad():
        indices = topk(queries.to(compute_dtype), keys.to(compute_dtype), k, **settings).indices
        rows = max(1, _GATHERED // (k * keys.shape[1]))
        pairs = zip(queries.split(rows), indices.split(rows), strict=True)
        values = torch.cat([(q[:, None] * keys[i]).sum(-1) for q, i in pairs])
        values.masked_fill_(indices < 0, -torch.inf)
    return FoundScores.apply(queries, keys, values, indices, False)
