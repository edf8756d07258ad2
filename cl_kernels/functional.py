"""The differentiable statistics of ``S = scale * query @ key.T``, never holding S."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._autograd import streamed
from cl_kernels._dispatch import choose
from cl_kernels.calls import call_options, note_call
from cl_kernels.checks import as_pair, as_scalar, check_embeddings, refuse_unbuilt
from cl_kernels.pairs import Where


def row_logsumexp(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor = 1.0,
    *,
    where: Where = (),
    below: Tensor | None = None,
    key_bias: Tensor | None = None,
    guide: tuple[Tensor, Tensor] | None = None,
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
        below, key_bias, guide: Not built yet; must be None.
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
        NotImplementedError: For an option that is not built yet.
    """
    query, key = as_pair(query, key)
    scale = as_scalar("scale", scale, query)
    refuse_unbuilt(below=below, key_bias=key_bias, guide=guide)
    shape = query.shape[0], key.shape[0]
    options = call_options(query, shape, where, compute_dtype, logit_bound)
    name = choose(backend, query.device, query.dtype)
    if _recording.active():
        return note_call("row_logsumexp", name, backend, query, shape, options.compute_dtype)[0]
    return streamed("row_logsumexp", name, options, scale, query, key)


def row_col_logsumexp(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor = 1.0,
    *,
    where: Where = (),
    below: Tensor | None = None,
    key_bias: Tensor | None = None,
    guide: tuple[Tensor, Tensor] | None = None,
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
    query, key = as_pair(query, key)
    scale = as_scalar("scale", scale, query)
    refuse_unbuilt(below=below, key_bias=key_bias, guide=guide)
    shape = query.shape[0], key.shape[0]
    options = call_options(query, shape, where, compute_dtype, logit_bound)
    name = choose(backend, query.device, query.dtype)
    if _recording.active():
        return note_call("row_col_logsumexp", name, backend, query, shape, options.compute_dtype)
    return streamed("row_col_logsumexp", name, options, scale, query, key)


def self_logsumexp(
    x: Tensor,
    scale: float | Tensor = 1.0,
    *,
    where: Where = (),
    below: Tensor | None = None,
    key_bias: Tensor | None = None,
    guide: tuple[Tensor, Tensor] | None = None,
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
    check_embeddings("x", x)
    scale = as_scalar("scale", scale, x)
    refuse_unbuilt(below=below, key_bias=key_bias, guide=guide)
    shape = x.shape[0], x.shape[0]
    options = call_options(x, shape, where, compute_dtype, logit_bound)
    name = choose(backend, x.device, x.dtype)
    if _recording.active():
        return note_call("self_logsumexp", name, backend, x, shape, options.compute_dtype)[0]
    return streamed("self_logsumexp", name, options, scale, x)


def pair_logits(query: Tensor, key: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """``scale * <query[i], key[i]>`` of matching rows: positives need no tiles.

    Args:
        query: Embeddings, shape [M, D].
        key: Embeddings, shape [M, D], same dtype and device.
        scale: A float or a 0-d tensor.

    Returns:
        Tensor of shape [M], in float32 (float64 for float64 embeddings).
    """
    query, key = as_pair(query, key, streamed=False)
    scale = as_scalar("scale", scale, query, streamed=False)
    if query.shape != key.shape:
        raise ValueError(
            f"key: expected as many rows as query, {query.shape[0]}, got {key.shape[0]}"
        )
    if query.dtype != torch.float64:
        query, key = query.float(), key.float()
    return scale * (query * key).sum(-1)
