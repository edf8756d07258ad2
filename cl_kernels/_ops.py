"""torch.library schemas: one per operation, one overload per backend.

``torch.ops.cl_kernels.row_logsumexp.chunked`` is the chunked backend's ``row_logsumexp``: the
overloads share a schema, so a backend is picked by name before the call, the dispatcher does no
guessing, and torch.compile sees one opaque operation with a fake.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cl_kernels._precision import accumulator
from cl_kernels.backends.native import interruptible

BACKENDS = ("reference", "chunked", "native", "triton")
PYTHON_BACKENDS = ("reference", "chunked", "triton")

_OPTIONS = (
    "Tensor[] query_ids, Tensor[] key_ids, bool[] keep_same, Tensor? below, Tensor? key_bias, "
    "Tensor? guide_query, Tensor? guide_key, ScalarType compute_dtype, float? logit_bound"
)
_PAIR = f"Tensor query, Tensor key, Tensor scale, {_OPTIONS}"

SCHEMAS = {
    "row_logsumexp": f"({_PAIR}) -> Tensor",
    "row_logsumexp_mean_key": f"({_PAIR}) -> (Tensor, Tensor)",
    "row_logsumexp_backward": (
        f"(Tensor grad, Tensor lse, {_PAIR}, bool need_query, bool need_key)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "row_col_logsumexp": f"({_PAIR}) -> (Tensor, Tensor)",
    "row_col_logsumexp_backward": (
        f"(Tensor grad_row, Tensor grad_col, Tensor row, Tensor col, {_PAIR}, bool need_query,"
        " bool need_key) -> (Tensor, Tensor, Tensor)"
    ),
    "self_logsumexp": f"(Tensor x, Tensor scale, {_OPTIONS}) -> Tensor",
    "self_logsumexp_backward": (
        f"(Tensor grad, Tensor lse, Tensor x, Tensor scale, {_OPTIONS}) -> (Tensor, Tensor)"
    ),
}

_CONTRAST = f"Tensor scale, {_OPTIONS}, bool normalize, bool mean, bool[] needs"

# What only the compiled CPU library computes: losses and gradients in one call, for small batches.
FUSED_SCHEMAS = {
    "self_contrast": f"(Tensor view_0, Tensor view_1, {_CONTRAST}) -> (Tensor, Tensor, Tensor)",
    "pair_contrast": (
        f"(Tensor query, Tensor key, {_CONTRAST}, bool symmetric)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}

# Exact top-K, and the selection among the survivors of a scan: see cl_kernels/search.py.
SEARCH_SCHEMAS = {
    "topk": (
        "(Tensor query, Tensor key, SymInt k, Tensor? query_factor, Tensor? key_factor,"
        " Tensor[] query_ids, Tensor[] key_ids, bool[] keep_same, Tensor? exclude_offsets,"
        " Tensor? exclude_keys, Tensor? below, Tensor? above) -> (Tensor, Tensor)"
    ),
    "select_topk": "(Tensor packed, Tensor counts, SymInt k) -> (Tensor, Tensor)",
}
SELECTORS = ("chunked", "native")

_library = torch.library.Library("cl_kernels", "DEF")
defined: dict[str, Callable[..., Any]] = {}  # the Python code of what ``define`` made, by name


def backend_module(name: str) -> ModuleType:
    """The backend's module, imported at its first use."""
    return import_module(f"cl_kernels.backends.{name}")


def overload(operation: str, backend: str) -> Callable[..., Any]:
    """The operation to be called; a native one lets Ctrl-C out."""
    return _overloads[operation, backend]


def _python_implementation(operation: str, backend: str) -> Callable[..., Any]:
    def implementation(*args):
        compute = getattr(backend_module(backend), operation)
        # The tile products' dtype is an argument: autocast has had its say already.
        device_type = next(a for a in args if isinstance(a, Tensor)).device.type
        if not torch.is_autocast_enabled(device_type):
            return compute(*args)
        with torch.autocast(device_type, enabled=False):
            return compute(*args)

    return implementation


def _accumulator(x: Tensor, *size) -> Tensor:
    return x.new_empty(size, dtype=accumulator(x))


def _gradients(query: Tensor, key: Tensor, need_query: bool, need_key: bool):
    return (
        _accumulator(query, *(query.shape if need_query else (0,))),
        _accumulator(key, *(key.shape if need_key else (0,))),
        _accumulator(query),
    )


def _row_backward_fake(grad, lse, query, key, scale, *options):
    return _gradients(query, key, *options[-2:])


def _row_col_backward_fake(grad_row, grad_col, row, col, query, key, scale, *options):
    return _gradients(query, key, *options[-2:])


def _self_contrast_fake(view_0, view_1, scale, *options):
    count = view_0.shape[0] + view_1.shape[0]
    size = (count, view_0.shape[1]) if any(options[-1]) else (0,)
    return _accumulator(view_0, count), _accumulator(view_0), _accumulator(view_0, *size)


def _pair_contrast_fake(query, key, scale, *options):
    needs_scale, needs_query, needs_key = options[-2]
    by_query = needs_query or (needs_scale and not needs_key)
    grad_query, grad_key, grad_scale = _gradients(query, key, by_query, needs_key)
    return _accumulator(query, query.shape[0]), grad_scale, grad_query, grad_key


def _topk_fake(query, key, k, *_):
    places = query.shape[0], k
    return _accumulator(query, *places), query.new_empty(places, dtype=torch.int64)


def _select_topk_fake(packed, counts, k):
    places = packed.shape[0], k
    return packed.new_empty(places, dtype=torch.float32), packed.new_empty(places)


_FAKES = {
    "row_logsumexp": lambda query, *_: _accumulator(query, query.shape[0]),
    "row_logsumexp_mean_key": lambda query, *_: (
        _accumulator(query, query.shape[0]),
        _accumulator(query, *query.shape),
    ),
    "row_logsumexp_backward": _row_backward_fake,
    "row_col_logsumexp": lambda query, key, *_: (
        _accumulator(query, query.shape[0]),
        _accumulator(key, key.shape[0]),
    ),
    "row_col_logsumexp_backward": _row_col_backward_fake,
    "self_logsumexp": lambda x, *_: _accumulator(x, x.shape[0]),
    "self_logsumexp_backward": lambda grad, lse, x, *_: (
        _accumulator(x, *x.shape),
        _accumulator(x),
    ),
    "self_contrast": _self_contrast_fake,
    "pair_contrast": _pair_contrast_fake,
    "topk": _topk_fake,
    "select_topk": _select_topk_fake,
}


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]):
    """An operation of Python code, which torch.compile calls without looking inside."""
    name = _library.define(schema)
    defined[name] = implementation
    torch.library.register_fake(f"cl_kernels::{name}", fake, lib=_library)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    return getattr(torch.ops.cl_kernels, name).default


_ALL_SCHEMAS = SCHEMAS | FUSED_SCHEMAS | SEARCH_SCHEMAS


def _define_overload(operation: str, backend: str) -> Callable[..., Any]:
    name = f"{operation}.{backend}"
    _library.define(name + _ALL_SCHEMAS[operation])
    torch.library.register_fake(f"cl_kernels::{name}", _FAKES[operation], lib=_library)
    if backend in PYTHON_BACKENDS:
        implementation = _python_implementation(operation, backend)
        _library.impl(name, implementation, "CompositeExplicitAutograd")
    compute = getattr(getattr(torch.ops.cl_kernels, operation), backend)
    return interruptible(compute) if backend == "native" else compute


_overloads = {
    (op, backend): _define_overload(op, backend) for op in SCHEMAS for backend in BACKENDS
}
_overloads |= {(op, "native"): _define_overload(op, "native") for op in FUSED_SCHEMAS}
_overloads |= {("topk", backend): _define_overload("topk", backend) for backend in BACKENDS}
_overloads |= {("select_topk", name): _define_overload("select_topk", name) for name in SELECTORS}
