"""What a call is, beside its embeddings: the checked options of every operation's schema."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import requested
from cl_kernels._precision import accumulator
from cl_kernels.checks import DTYPES, autocast_dtype, check_filters
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

    def concrete(self) -> CallOptions:
        """Without a bound that is a symbol of torch.compile: it would compile for every value."""
        if isinstance(self.logit_bound, torch.SymFloat):
            return self._replace(logit_bound=None)
        return self

    def save(self, ctx: Any, *tensors: Tensor) -> None:
        """Keeps these and what the backward pass reads of the options, watched by autograd."""
        ctx.save_for_backward(*tensors, *self.query_ids, *self.key_ids)
        ctx.options = self

    @staticmethod
    def saved(ctx: Any) -> tuple[tuple[Tensor, ...], CallOptions]:
        """What ``save`` kept; raises where it was changed in place since."""
        options: CallOptions = ctx.options
        tensors, count = ctx.saved_tensors, len(options.keep_same)
        own = len(tensors) - 2 * count
        query_ids, key_ids = tensors[own : own + count], tensors[own + count :]
        return tensors[:own], options._replace(query_ids=query_ids, key_ids=key_ids)


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
    autocast = autocast_dtype(x.device)
    return autocast if autocast is not None and x.dtype == torch.float32 else x.dtype


def scale_tensor(scale: float | Tensor, x: Tensor) -> Tensor:
    """The scale, checked already, as kernels take it for embeddings like ``x``."""
    if isinstance(scale, Tensor):
        return scale.to(device=x.device, dtype=accumulator(x))
    return torch.full((), scale, dtype=accumulator(x), device=x.device)


def note_call(primitive, name, backend, query, shape, compute_dtype) -> tuple[Tensor, Tensor]:
    """For ``explain``: zeros in place of the statistics of rows and columns."""
    asked = requested(backend)
    source = None if asked is None else asked[1]
    return _recording.record(primitive, name, source, query, shape, compute_dtype)
