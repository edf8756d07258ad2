"""The differentiable statistics of ``S = scale * query @ key.T``, never holding S."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels.calls import as_call, note_call, request_of
from cl_kernels.checks import as_pair, as_scalar, check_embeddings
from cl_kernels.pairs import Where
from cl_kernels.statistics.autograd import streamed
from cl_kernels.statistics.table import STATISTICS


class _Options(NamedTuple):
    where: Where
    compute_dtype: torch.dtype | None
    logit_bound: float | None
    backend: str | None


def _of_pair(
    name: str, query: Tensor, key: Tensor, scale: float | Tensor, options: _Options
) -> tuple[Tensor, ...]:
    query, key = as_pair(query, key)
    return _statistic(name, query, key, as_scalar("scale", scale, query), options)


def _of_one(name: str, x: Tensor, scale: float | Tensor, options: _Options) -> tuple[Tensor, ...]:
    check_embeddings("x", x)
    return _statistic(name, x, None, as_scalar("scale", scale, x), options)


def _statistic(
    name: str, query: Tensor, key: Tensor | None, scale: float | Tensor, options: _Options
) -> tuple[Tensor, ...]:
    where, compute_dtype, logit_bound, backend = options
    shape = query.shape[0], (query if key is None else key).shape[0]
    call = as_call(query, shape, where, compute_dtype, logit_bound)
    request = request_of(name, query, call)
    chosen = choose(backend, request)
    if _recording.active():
        zeros = note_call(request, chosen, backend, query, shape)
        return zeros[: len(STATISTICS[name].empty_values(query, key))]
    return streamed(name, chosen, call, scale, query, key)


def row_logsumexp(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor = 1.0,
    *,
    where: Where = (),
    compute_dtype: torch.dtype | None = None,
    logit_bound: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Log-sum-exp over keys of each query's scaled logits, without the M x N matrix.

    Computes ``lse[i] = log(sum_j exp(scale * <query[i], key[j]>))`` over the kept pairs, one tile
    of logits at a time. Memory is O((M + N) D). When ``key`` needs no gradient, the query's is
    accumulated in the forward visit.

    Args:
        query: Embeddings, shape [M, D]. float32, float16 or bfloat16 (float64 where the backend
            serves it).
        key: Embeddings, shape [N, D], same dtype and device as ``query``.
        scale: Inverse temperature: a float, or a 0-d tensor that may require grad.
        where: Up to two ``PairFilter``; a pair is kept if every filter keeps it.
        compute_dtype: Precision of the tile products; accumulation is float32. Default: autocast's
            dtype where autocast is on, else the embeddings' own.
        logit_bound: A number no ``|scale * <query[i], key[j]>|`` exceeds, if the caller knows one
            (``abs(scale)`` for unit vectors); lets GPU kernels skip the running maximum.
        backend: Which backend serves the call; default: see ``cl_kernels.doctor()``.

    Returns:
        float32 tensor of shape [M] (float64 for float64 embeddings). A query with no kept key
        gets ``-inf`` and zero gradient.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, dtypes or devices disagree; the message names both.
    """
    options = _Options(where, compute_dtype, logit_bound, backend)
    return _of_pair("row_logsumexp", query, key, scale, options)[0]


def row_col_logsumexp(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor = 1.0,
    *,
    where: Where = (),
    compute_dtype: torch.dtype | None = None,
    logit_bound: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the rows and of the columns of the logits, from one visit of the tiles.

    Arguments and errors are those of ``row_logsumexp``.

    Returns:
        ``(row, col)``, shapes [M] and [N]: ``row[i]`` over the kept keys of query i, ``col[j]``
        over the kept queries of key j. An empty one is ``-inf`` with zero gradient.
    """
    options = _Options(where, compute_dtype, logit_bound, backend)
    row, col = _of_pair("row_col_logsumexp", query, key, scale, options)
    return row, col


def self_logsumexp(
    x: Tensor,
    scale: float | Tensor = 1.0,
    *,
    where: Where = (),
    compute_dtype: torch.dtype | None = None,
    logit_bound: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``row_logsumexp(x, x, scale)`` at half the cost: the Gram matrix is symmetric.

    A pair of an embedding with itself counts unless a filter drops it. Arguments and errors are
    those of ``row_logsumexp``; filters need not be symmetric.

    Args:
        x: Embeddings, shape [R, D].

    Returns:
        float32 tensor of shape [R] (float64 for float64 embeddings).
    """
    options = _Options(where, compute_dtype, logit_bound, backend)
    return _of_one("self_logsumexp", x, scale, options)[0]
