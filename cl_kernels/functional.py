"""The differentiable statistics of ``S = scale * query @ key.T``, never holding S."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose, requested
from cl_kernels._ops import overload
from cl_kernels.checks import (
    DTYPES,
    check_embeddings,
    check_filters,
    check_pair,
    check_scalar,
    refuse_unbuilt,
)
from cl_kernels.pairs import Where


class CallOptions(NamedTuple):
    """The tail of every schema, in its order."""

    query_ids: tuple[Tensor, ...]
    key_ids: tuple[Tensor, ...]
    keep_same: tuple[bool, ...]
    below: Tensor | None
    key_bias: Tensor | None
    guide_query: Tensor | None
    guide_key: Tensor | None
    compute_dtype: torch.dtype
    logit_bound: float | None


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
    check_pair(query, key)
    check_scalar("scale", scale)
    refuse_unbuilt(below=below, key_bias=key_bias, guide=guide)
    shape = query.shape[0], key.shape[0]
    options = call_options(query, shape, where, compute_dtype, logit_bound)
    name = choose(backend, query.device, query.dtype)
    if _recording.active():
        return note_call("row_logsumexp", name, backend, query, shape, options)[0]
    scale = scale_tensor(scale, query)
    if not _needs_grad(query, key, scale):
        return overload("row_logsumexp", name)(
            query.contiguous(), key.contiguous(), scale, *options
        )
    if key.requires_grad:
        return _RowLogSumExp.apply(query, key, scale, name, options)
    return _RowLogSumExpFrozenKey.apply(query, key, scale, name, options)


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
    check_pair(query, key)
    check_scalar("scale", scale)
    refuse_unbuilt(below=below, key_bias=key_bias, guide=guide)
    shape = query.shape[0], key.shape[0]
    options = call_options(query, shape, where, compute_dtype, logit_bound)
    name = choose(backend, query.device, query.dtype)
    if _recording.active():
        return note_call("row_col_logsumexp", name, backend, query, shape, options)
    scale = scale_tensor(scale, query)
    if not _needs_grad(query, key, scale):
        compute = overload("row_col_logsumexp", name)
        return compute(query.contiguous(), key.contiguous(), scale, *options)
    return _RowColLogSumExp.apply(query, key, scale, name, options)


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
    check_scalar("scale", scale)
    refuse_unbuilt(below=below, key_bias=key_bias, guide=guide)
    shape = x.shape[0], x.shape[0]
    options = call_options(x, shape, where, compute_dtype, logit_bound)
    name = choose(backend, x.device, x.dtype)
    if _recording.active():
        return note_call("self_logsumexp", name, backend, x, shape, options)[0]
    scale = scale_tensor(scale, x)
    if not _needs_grad(x, scale):
        return overload("self_logsumexp", name)(x.contiguous(), scale, *options)
    return _SelfLogSumExp.apply(x, scale, name, options)


def pair_logits(query: Tensor, key: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """``scale * <query[i], key[i]>`` of matching rows: positives need no tiles.

    Args:
        query: Embeddings, shape [M, D].
        key: Embeddings, shape [M, D], same dtype and device.
        scale: A float or a 0-d tensor.

    Returns:
        Tensor of shape [M], in float32 (float64 for float64 embeddings).
    """
    check_pair(query, key)
    check_scalar("scale", scale)
    if query.shape != key.shape:
        raise ValueError(
            f"key: expected as many rows as query, {query.shape[0]}, got {key.shape[0]}"
        )
    if query.dtype != torch.float64:
        query, key = query.float(), key.float()
    return scale * (query * key).sum(-1)


class _RowLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, scale, backend, options):
        query, key = query.contiguous(), key.contiguous()
        lse = overload("row_logsumexp", backend)(query, key, scale, *options)
        ctx.save_for_backward(query, key, scale, lse)
        ctx.backend, ctx.options = backend, options
        return lse

    @staticmethod
    def backward(ctx: Any, *grads):
        refuse_double_backward()
        query, key, scale, lse = ctx.saved_tensors
        compute = overload("row_logsumexp_backward", ctx.backend)
        (grad,) = (g.contiguous() for g in grads)
        return _pair_gradients(ctx, compute, (grad, lse), query, key, scale)


class _RowLogSumExpFrozenKey(torch.autograd.Function):
    """Only the query (or scale) is trained: its gradient is made in the forward visit."""

    @staticmethod
    def forward(ctx: Any, query, key, scale, backend, options):
        query = query.contiguous()
        compute = overload("row_logsumexp_mean_key", backend)
        lse, mean_key = compute(query, key.contiguous(), scale, *options)
        ctx.save_for_backward(query, scale, lse, mean_key)
        ctx.compute_dtype = options.compute_dtype
        return lse

    @staticmethod
    def backward(ctx: Any, *grads):
        refuse_double_backward()
        query, scale, lse, mean_key = ctx.saved_tensors
        empty = (lse == -torch.inf)[:, None]
        grad = grads[0][:, None].masked_fill(empty, 0)
        grad_query = grad_scale = None
        if ctx.needs_input_grad[0]:
            grad_query = (mean_key * (scale * grad)).to(query.dtype)
        if ctx.needs_input_grad[2]:
            rounded = query.to(ctx.compute_dtype).to(mean_key.dtype)
            products = (rounded * mean_key).mul_(grad).masked_fill_(empty, 0)
            grad_scale = products.sum(dtype=torch.float64).to(scale.dtype)
        return grad_query, None, grad_scale, None, None


class _RowColLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, scale, backend, options):
        query, key = query.contiguous(), key.contiguous()
        row, col = overload("row_col_logsumexp", backend)(query, key, scale, *options)
        ctx.save_for_backward(query, key, scale, row, col)
        ctx.backend, ctx.options = backend, options
        return row, col

    @staticmethod
    def backward(ctx: Any, *grads):
        refuse_double_backward()
        query, key, scale, row, col = ctx.saved_tensors
        compute = overload("row_col_logsumexp_backward", ctx.backend)
        grad_row, grad_col = (g.contiguous() for g in grads)
        return _pair_gradients(ctx, compute, (grad_row, grad_col, row, col), query, key, scale)


class _SelfLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, scale, backend, options):
        x = x.contiguous()
        lse = overload("self_logsumexp", backend)(x, scale, *options)
        ctx.save_for_backward(x, scale, lse)
        ctx.backend, ctx.options = backend, options
        return lse

    @staticmethod
    def backward(ctx: Any, *grads):
        refuse_double_backward()
        x, scale, lse = ctx.saved_tensors
        compute = overload("self_logsumexp_backward", ctx.backend)
        grad_x, grad_scale = compute(grads[0].contiguous(), lse, x, scale, *ctx.options)
        return grad_x.to(x.dtype), grad_scale, None, None


def _pair_gradients(ctx: Any, compute, statistics, query, key, scale):
    needs_query, needs_key, needs_scale = ctx.needs_input_grad[:3]
    by_query = needs_query or (needs_scale and not needs_key)  # <query, grad> gives the scale's
    grad_query, grad_key, grad_scale = compute(
        *statistics, query, key, scale, *ctx.options, by_query, needs_key
    )
    return (
        grad_query.to(query.dtype) if needs_query else None,
        grad_key.to(key.dtype) if needs_key else None,
        grad_scale if needs_scale else None,
        None,
        None,
    )


def note_call(primitive, name, backend, query, shape, options) -> tuple[Tensor, Tensor]:
    """For ``explain``: zeros in place of the statistics of rows and columns."""
    asked = requested(backend)
    source = None if asked is None else asked[1]
    return _recording.record(primitive, name, source, query, shape, options.compute_dtype)


def refuse_double_backward() -> None:
    """To be called by every hand-written backward: under create_graph it would be wrong."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "cl_kernels: double backward (create_graph=True) is not supported: the gradients of "
            "the streamed statistics are not differentiable"
        )


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def call_options(
    query: Tensor,
    shape: tuple[int, int],
    where: Where,
    compute_dtype: torch.dtype | None,
    logit_bound: float | None,
    excluded: tuple[Tensor, Tensor] | None = None,
) -> CallOptions:
    """The checked options of a call on ``shape`` = (M, N) pairs of embeddings like ``query``.

    ``excluded``: int64 ids of queries and keys whose equal pairs are dropped too: a loss's own
    filter, which needs no check.
    """
    filters = check_filters(where, shape, query.device) if where != () else ()
    if compute_dtype is None:
        compute_dtype = default_compute_dtype(query)
    elif compute_dtype not in DTYPES:
        supported = ", ".join(str(d) for d in DTYPES)
        raise TypeError(f"compute_dtype: expected one of {supported}, got {compute_dtype}")
    if logit_bound is not None and not 0 <= logit_bound < math.inf:
        raise ValueError(f"logit_bound: expected a finite number >= 0 or None, got {logit_bound}")
    query_ids = tuple(f.query_ids for f in filters)
    key_ids = tuple(f.key_ids for f in filters)
    keep_same = tuple(f.keep == "same" for f in filters)
    if excluded is not None:
        query_ids, key_ids = (excluded[0], *query_ids), (excluded[1], *key_ids)
        keep_same = (False, *keep_same)
    return CallOptions(
        query_ids, key_ids, keep_same, None, None, None, None, compute_dtype, logit_bound
    )


def default_compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype for float32 embeddings where autocast is on, else their own."""
    device = x.device.type
    if x.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def scale_tensor(scale: float | Tensor, x: Tensor) -> Tensor:
    """The scale, checked already, as kernels take it for embeddings like ``x``."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if isinstance(scale, Tensor):
        return scale.to(device=x.device, dtype=dtype)
    return torch.full((), scale, dtype=dtype, device=x.device)
