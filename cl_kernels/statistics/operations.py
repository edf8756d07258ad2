"""The operations of the statistics, made from their table: a value, its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from cl_kernels._ops import define_overloads, new_like, overload
from cl_kernels._spread import Spread
from cl_kernels.calls import CALL, Call
from cl_kernels.statistics.table import STATISTICS, Statistic

_INPUTS = f"Tensor query, Tensor? key, Tensor scale, {CALL}"


def forward(
    statistic: Statistic, backend: str, query: Tensor, key: Tensor | None, scale: Tensor, call: Call
) -> tuple[Tensor, ...]:
    """Values of each side: [M] of the rows, then [N] of the columns."""
    if isinstance(backend, Spread):
        return backend.forward(statistic, query, key, scale, call)
    values = overload(statistic.name, backend)(query, key, scale, *call.arguments)
    return values if isinstance(values, tuple) else (values,)


def weighted_key(
    statistic: Statistic, backend: str, query: Tensor, key: Tensor, scale: Tensor, call: Call
) -> tuple[Tensor, Tensor]:
    """Values [M], and the sum of the keys of each query, [M, D], as its logits' derivatives weigh
    them."""
    if isinstance(backend, Spread):
        return backend.weighted_key(statistic, query, key, scale, call)
    compute = overload(f"{statistic.name}_weighted_key", backend)
    return compute(query, key, scale, *call.arguments)


class Gradients(NamedTuple):
    """What is not wanted is empty; that of the scale is made from one of the others."""

    query: Tensor
    key: Tensor
    scale: Tensor
    query_bias: Tensor
    key_bias: Tensor


def backward(
    statistic: Statistic,
    backend: str,
    grads: Sequence[Tensor],
    values: Sequence[Tensor],
    query: Tensor,
    key: Tensor | None,
    scale: Tensor,
    call: Call,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients for those of each side's (differentiable) value.

    ``needs``: whether those of query, key, query_bias and key_bias are wanted.
    """
    if isinstance(backend, Spread):
        return backend.backward(statistic, grads, values, query, key, scale, call, needs)
    compute = overload(f"{statistic.name}_backward", backend)
    arguments = query, key, scale, *call.arguments
    return Gradients(*compute(list(grads), list(values), *arguments, list(needs)))


def _returns(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


def _forward_fake(statistic: Statistic, query: Tensor, key: Tensor | None, *_) -> Any:
    values = statistic.new_values(query, key)
    return values[0] if len(values) == 1 else values


def _weighted_key_fake(query: Tensor, *_) -> tuple[Tensor, Tensor]:
    return new_like(query, query.shape[0]), new_like(query, *query.shape)


def _backward_fake(grads, values, query: Tensor, key: Tensor | None, *arguments):
    needs_query, needs_key, needs_query_bias, needs_key_bias = arguments[-1]
    keys = query if key is None else key
    return (
        new_like(query, *(query.shape if needs_query else (0,))),
        new_like(query, *(key.shape if needs_key and key is not None else (0,))),
        new_like(query),
        new_like(query, query.shape[0] if needs_query_bias else 0),
        new_like(query, keys.shape[0] if needs_key_bias else 0),
    )


def _forward(statistic: Statistic, module, query, key, scale, *call):
    values = module.forward(statistic, query, key, scale, Call.of(call))
    return values[0] if len(values) == 1 else tuple(values)


def _weighted_key(statistic: Statistic, module, query, key, scale, *call):
    return module.weighted_key(statistic, query, key, scale, Call.of(call))


def _backward(statistic: Statistic, module, grads, values, query, key, scale, *arguments):
    *call, needs = arguments
    return module.backward(statistic, grads, values, query, key, scale, Call.of(call), needs)


def _define(statistic: Statistic) -> None:
    name = statistic.name
    values = (2 if statistic.sides == "row_col" else 1) * (2 if statistic.fold.counts else 1)
    define_overloads(
        name,
        f"({_INPUTS}) -> {_returns(values)}",
        partial(_forward_fake, statistic),
        partial(_forward, statistic),
    )
    if statistic.has_weighted_key:
        define_overloads(
            f"{name}_weighted_key",
            f"({_INPUTS}) -> (Tensor, Tensor)",
            _weighted_key_fake,
            partial(_weighted_key, statistic),
        )
    define_overloads(
        f"{name}_backward",
        f"(Tensor[] grads, Tensor[] values, {_INPUTS}, bool[] needs) -> {_returns(5)}",
        _backward_fake,
        partial(_backward, statistic),
    )


for _statistic in STATISTICS.values():
    _define(_statistic)
