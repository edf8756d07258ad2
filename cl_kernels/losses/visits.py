"""A visit of the tiles that a loss is going to make: checked, and who serves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels.calls import Call, as_call, note_call, request_of
from cl_kernels.pairs import Where


class Visit(NamedTuple):
    """A statistic, the pairs that count, and the backend; None where it is only noted."""

    statistic: str
    backend: str | None
    call: Call


def visit(
    statistic: str,
    query: Tensor,
    keys: int | Tensor | None = None,
    where: Where = (),
    *,
    biased: tuple[str, ...] = (),
    vectors: Mapping[str, Tensor | None] | None = None,
    logit_bound: float | None = None,
    backend: str | None = None,
) -> Visit:
    """
    Args:
        statistic: By name.
        query: Embeddings, [M, D].
        keys: Embeddings, [N, D], or how many; default: the queries.
        where: Which pairs count.
        biased: Which biases the statistic will be evaluated with, by name.
        vectors: Other options of ``Pairs``.
        logit_bound: What no logit exceeds, if the host knows it.
        backend: Which backend is asked for.
    """
    N = query if keys is None else keys
    shape = query.shape[0], N.shape[0] if isinstance(N, Tensor) else N
    call = as_call(query, shape, where, None, logit_bound, vectors)
    request = request_of(statistic, query, call)
    if biased:
        request = request._replace(options=(*biased, *request.options))
    name = choose(backend, request)
    if not _recording.active():
        return Visit(statistic, name, call)
    guide = call.pairs.query_guide
    note_call(request, name, backend, query, shape, 0 if guide is None else guide.shape[1])
    return Visit(statistic, None, call)
