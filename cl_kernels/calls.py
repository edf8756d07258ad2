"""What a call of a statistic is, beside its embeddings and its scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import Request, requested
from cl_kernels._numbers import check_number
from cl_kernels._precision import accumulator
from cl_kernels.checks import DTYPES, autocast_dtype, check_filters
from cl_kernels.pairs import PAIRS, Pairs, Where, as_pairs

# Backends refuse widths above one of these, never between two.
WIDTH_CLASSES = 4096, 1 << 62

CALL = f"{PAIRS}, ScalarType compute_dtype, float? logit_bound"


class Call(NamedTuple):
    """The tail of every statistic's schema: which pairs count, and how they are computed."""

    pairs: Pairs
    compute_dtype: torch.dtype
    logit_bound: float | None

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> Call:
        """From the tail of an operation's arguments."""
        *pairs, compute_dtype, logit_bound = arguments
        return cls(Pairs(*pairs), compute_dtype, logit_bound)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.pairs, self.compute_dtype, self.logit_bound

    def concrete(self) -> Call:
        """Without a bound that is a symbol of torch.compile: it would compile for every value."""
        if isinstance(self.logit_bound, torch.SymFloat):
            return self._replace(logit_bound=None)
        return self

    def with_biases(self, query_bias: Tensor | None, key_bias: Tensor | None) -> Call:
        """With these tensors, which autograd hands to its functions in place of the given ones."""
        if query_bias is self.pairs.query_bias and key_bias is self.pairs.key_bias:
            return self
        return self._replace(pairs=self.pairs._replace(query_bias=query_bias, key_bias=key_bias))

    def save(self, ctx: Any, *tensors: Tensor | None) -> None:
        """Keeps these and what the backward pass reads of the pairs, watched by autograd."""
        ctx.save_for_backward(*tensors, *self.pairs.tensors())
        ctx.call = self

    @staticmethod
    def saved(ctx: Any) -> tuple[tuple[Any, ...], Call]:
        """What ``save`` kept; raises where it was changed in place since."""
        call: Call = ctx.call
        tensors = ctx.saved_tensors
        own = len(tensors) - len(call.pairs.tensors())
        pairs = call.pairs.holding(tensors[own:])
        return tensors[:own], Call(pairs, call.compute_dtype, call.logit_bound)


def as_call(
    query: Tensor,
    shape: tuple[int, int],
    where: Where,
    compute_dtype: torch.dtype | None = None,
    logit_bound: float | None = None,
    vectors: Mapping[str, Tensor | None] | None = None,
) -> Call:
    """The checked options of a call on ``shape`` = (M, N) pairs of embeddings like ``query``.

    ``vectors``: other options of ``Pairs``, which were checked.
    """
    filters = check_filters(where, shape, query.device) if where != () else ()
    if compute_dtype is None:
        compute_dtype = default_compute_dtype(query)
    elif compute_dtype not in DTYPES:
        supported = ", ".join(str(d) for d in DTYPES)
        raise TypeError(f"compute_dtype: expected one of {supported}, got {compute_dtype}")
    if logit_bound is not None:
        check_number("logit_bound", logit_bound, "a number or None")
        if not 0 <= logit_bound < math.inf:
            raise ValueError(
                f"logit_bound: expected a finite number >= 0 or None, got {logit_bound}"
            )
    return Call(as_pairs(filters, **(vectors or {})), compute_dtype, logit_bound)


def default_compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype for float32 embeddings where autocast is on, else their own."""
    autocast = autocast_dtype(x.device)
    return autocast if autocast is not None and x.dtype == torch.float32 else x.dtype


def number_tensor(scale: float | Tensor, x: Tensor) -> Tensor:
    """A scale or a bias, checked already, as kernels take it for embeddings like ``x``."""
    if isinstance(scale, Tensor):
        return scale.to(device=x.device, dtype=accumulator(x))
    return torch.full((), scale, dtype=accumulator(x), device=x.device)


def request_of(operation: str, x: Tensor, call: Call) -> Request:
    """What a backend is asked for with embeddings like x."""
    options = call.pairs.options
    return Request(operation, x.device, x.dtype, call.compute_dtype, _width(x), options)


def _width(x: Tensor) -> int:
    if not torch.compiler.is_compiling():
        return x.shape[1]
    # Of a symbol, which no backend could be asked about, the class: one compilation serves it all.
    return next(width for width in WIDTH_CLASSES if x.shape[1] <= width)


def note_call(
    request: Request,
    name: str,
    backend: str | None,
    query: Tensor,
    shape: tuple[int, int],
    guide_width: int = 0,
) -> tuple[Tensor, Tensor]:
    """For ``explain``: zeros in place of the statistics of rows and columns."""
    asked = requested(backend)
    source = None if asked is None else asked[1]
    call = _recording.PrimitiveCall(request, name, source, *shape, guide_width)
    return _recording.record(call, query)
