"""The differentiable statistics of ``S = scale * query @ key.T``, never holding S."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._numbers import check_flag
from cl_kernels.calls import as_call, note_call, request_of
from cl_kernels.checks import (
    Bound,
    as_bias,
    as_bound,
    as_pair,
    as_scalar,
    check_embeddings,
    check_window,
)
from cl_kernels.pairs import Where
from cl_kernels.statistics.autograd import streamed
from cl_kernels.statistics.guide import Guide, as_guide
from cl_kernels.statistics.rows import float_rows
from cl_kernels.statistics.table import STATISTICS

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """What every statistic takes beside its embeddings and their scale, by name.

    The logit of query i and key j is ``scale * s + query_bias[i] + key_bias[j]``, where s is their
    similarity ``<query[i], key[j]>``.

    Args:
        where: Up to three ``PairFilter``; a pair is kept if every filter keeps it.
        below: Keep pairs whose similarity (unscaled) is strictly below this: a number, or one for
            each query, [M]. No gradient flows to it.
        above: Keep pairs whose similarity is strictly above this; less than ``below``.
        query_bias: A number, or one for each query, [M]; differentiable.
        key_bias: A number, or one for each key, [N]; differentiable. For sampled softmax, minus the
            logarithm of how likely each key was to be drawn.
        guide: Another model's embeddings of the queries [M, G] and of the keys [N, G], and a
            ceiling: a number, or one for each query, [M]. A pair is dropped where
            ``<guide query[i], guide key[j]>`` exceeds the ceiling. No gradient flows to them.
        normalize: Divide embeddings by their length first.
        compute_dtype: Precision of the tile products; accumulation is float32. Default: autocast's
            dtype where autocast is on, else the embeddings' own.
        logit_bound: A number no ``|logit|`` exceeds, if the caller knows one (``abs(scale)`` for
            unit vectors without biases); lets GPU kernels skip the running maximum.
        backend: Which backend serves the call; default: see ``cl_kernels.doctor()``.
    """

    where: Where
    below: Bound
    above: Bound
    query_bias: float | Tensor | None
    key_bias: float | Tensor | None
    guide: Guide | None
    normalize: bool
    compute_dtype: torch.dtype | None
    logit_bound: float | None
    backend: str | None


_NAMES = frozenset(Options.__annotations__)


class HingeSum(NamedTuple):
    """Sums of the positive logits, and how many there are.

    Args:
        sum: ``sum_j max(logit[i, j], 0)``, differentiable.
        active: How many kept logits are above 0, int64.
    """

    sum: Tensor
    active: Tensor


def row_logsumexp(
    query: Tensor, key: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]
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
        options: Which pairs count, biases and precision: see
            ``cl_kernels.statistics.functions.Options``.

    Returns:
        float32 tensor of shape [M] (float64 for float64 embeddings). A query with no kept key
        gets ``-inf`` and zero gradient.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes, dtypes, devices or bounds disagree; the message names both.

    Example::

        lse = row_logsumexp(query, key, 1 / 0.07, where=PairFilter(ids, ids, "different"))
    """
    return _of_pair("row_logsumexp", query, key, scale, options)[0]


def row_col_logsumexp(
    query: Tensor, key: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the rows and of the columns of the logits, from one visit of the tiles.

    Arguments and errors are those of ``row_logsumexp``. Bounds, ceilings and filters are the
    queries' for both sides: a pair counts in its row and its column, or in neither.

    Returns:
        ``(row, col)``, shapes [M] and [N]: ``row[i]`` over the kept keys of query i, ``col[j]``
        over the kept queries of key j. An empty one is ``-inf`` with zero gradient.
    """
    row, col = _of_pair("row_col_logsumexp", query, key, scale, options)
    return row, col


def self_logsumexp(x: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]) -> Tensor:
    """``row_logsumexp(x, x, scale)`` at half the cost: the Gram matrix is symmetric.

    A pair of an embedding with itself counts unless a filter drops it. Arguments and errors are
    those of ``row_logsumexp``; filters, bounds and biases need not be symmetric.

    Args:
        x: Embeddings, shape [R, D].

    Returns:
        float32 tensor of shape [R] (float64 for float64 embeddings).
    """
    return _of_one("self_logsumexp", x, scale, options)[0]


def row_softplus_sum(
    query: Tensor, key: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]
) -> Tensor:
    """``sum_j log(1 + exp(logit[i, j]))`` over the kept keys of each query: the negatives' part of
    sigmoid losses (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, equation 1).

    Arguments and errors are those of ``row_logsumexp``.

    Returns:
        float32 tensor of shape [M] (float64 for float64 embeddings); 0 for a query with no kept
        key.
    """
    return _of_pair("row_softplus_sum", query, key, scale, options)[0]


def row_col_softplus_sum(
    query: Tensor, key: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    """``row_softplus_sum`` of the rows and of the columns, shapes [M] and [N], from one visit."""
    row, col = _of_pair("row_col_softplus_sum", query, key, scale, options)
    return row, col


def self_softplus_sum(x: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]) -> Tensor:
    """``row_softplus_sum(x, x, scale)``, shape [R], at half the cost."""
    return _of_one("self_softplus_sum", x, scale, options)[0]


def row_hinge_sum(
    query: Tensor, key: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]
) -> HingeSum:
    """``sum_j max(logit[i, j], 0)`` over the kept keys of each query, and how many are above 0.

    With ``query_bias`` the margin minus an anchor's similarity to its positive, the triplet losses
    of all negatives. Arguments and errors are those of ``row_logsumexp``.

    Returns:
        ``HingeSum(sum, active)``, each [M]; sums in float32 (float64 for float64 embeddings).
    """
    return HingeSum(*_of_pair("row_hinge_sum", query, key, scale, options))


def row_col_hinge_sum(
    query: Tensor, key: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]
) -> tuple[HingeSum, HingeSum]:
    """``row_hinge_sum`` of the rows, [M], and of the columns, [N], from one visit."""
    values = _of_pair("row_col_hinge_sum", query, key, scale, options)
    return HingeSum(*values[:2]), HingeSum(*values[2:])


def self_hinge_sum(x: Tensor, scale: float | Tensor = 1.0, **options: Unpack[Options]) -> HingeSum:
    """``row_hinge_sum(x, x, scale)``, each [R], at half the cost."""
    return HingeSum(*_of_one("self_hinge_sum", x, scale, options))


def _of_pair(
    name: str, query: Tensor, key: Tensor, scale: float | Tensor, options: Options
) -> tuple[Tensor, ...]:
    query, key = as_pair(query, key)
    return _statistic(name, query, key, as_scalar("scale", scale, query), options)


def _of_one(name: str, x: Tensor, scale: float | Tensor, options: Options) -> tuple[Tensor, ...]:
    check_embeddings("x", x)
    return _statistic(name, x, None, as_scalar("scale", scale, x), options)


def _statistic(
    name: str, query: Tensor, key: Tensor | None, scale: float | Tensor, options: Options
) -> tuple[Tensor, ...]:
    for option in options:
        if option not in _NAMES:
            raise TypeError(f"{name}: got an unexpected option, {option!r}")
    normalize = options.get("normalize", False)
    check_flag("normalize", normalize)
    shape = query.shape[0], (query if key is None else key).shape[0]
    call = as_call(
        query,
        shape,
        options.get("where", ()),
        options.get("compute_dtype"),
        options.get("logit_bound"),
        vectors=_vectors(query, shape, options),
    )
    backend = options.get("backend")
    request = request_of(name, query, call)
    chosen = choose(backend, request)
    if _recording.active():
        guide = call.pairs.query_guide
        guide_width = 0 if guide is None else guide.shape[1]
        zeros = note_call(request, chosen, backend, query, shape, guide_width)
        return STATISTICS[name].from_zeros(*zeros)
    if normalize:
        query = float_rows(query, normalize=True)
        key = None if key is None else float_rows(key, normalize=True)
    return streamed(name, chosen, call, scale, query, key)


def _vectors(query: Tensor, shape: tuple[int, int], options: Options) -> dict[str, Tensor | None]:
    """The options of ``Pairs`` that are vectors, checked; those that are not given are left out."""
    if not options.keys() & {"below", "above", "query_bias", "key_bias", "guide"}:
        return {}
    below, above = (as_bound(name, options.get(name), query) for name in ("below", "above"))
    check_window(below, above)
    return {
        "below": below,
        "above": above,
        "query_bias": as_bias("query_bias", options.get("query_bias"), query, shape[0], "queries"),
        "key_bias": as_bias("key_bias", options.get("key_bias"), query, shape[1], "keys"),
        **as_guide(options.get("guide"), query, shape),
    }
