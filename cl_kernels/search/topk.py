"""Exact top-K of the similarity matrix, which is never held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose, reason_against, requested
from cl_kernels._ops import overload
from cl_kernels.checks import check_count, check_embeddings, check_filters, readable
from cl_kernels.csr import Lists, as_csr
from cl_kernels.pairs import Where

from .gradients import FoundScores
from .scan import Search
from .scores import TopK, accumulator, inverse_norms, nothing_found
from .stream import progress_bar

if TYPE_CHECKING:
    import numpy

Bound = float | Tensor | None

_MOST_KEYS = 1 << 31


def topk(
    query: Tensor,
    key: Tensor | numpy.ndarray,
    k: int,
    *,
    normalize: bool = True,
    where: Where = (),
    exclude: Lists | None = None,
    below: Bound = None,
    above: Bound = None,
    largest: bool = True,
    sorted: bool = True,
    progress: bool = False,
    backend: str | None = None,
) -> TopK:
    """The k most similar keys of each query: exact, filtered inside the scan, never M x N.

    Scores are cosines or, with ``normalize=False``, inner products. Embeddings are multiplied as
    they are, and divided by their lengths in float32 afterwards. Equal scores are ordered by key
    index, on every backend. Memory beyond the results does not grow with N.

    Args:
        query: Embeddings, shape [M, D]. float32, float16, bfloat16 or float64.
        key: Embeddings, shape [N, D], same dtype. A tensor on the query's device; or one in host
            memory (pinned or not), or a NumPy array or memory map, of any size: it is streamed to
            the query's device in blocks, the next one copied while the last is searched.
        k: How many, at least 1; may exceed N.
        normalize: Score by cosine. A zero vector scores 0 with everything.
        where: Up to two ``PairFilter``; a pair is kept if every filter keeps it.
        exclude: Keys to leave out for each query: a ``CSR`` (offsets [M + 1], keys [nnz]), one
            key a query [M], or [M, P] padded with -1.
        below: Keep scores strictly below this: a number, or one for each query, [M].
        above: Keep scores strictly above this.
        largest: False finds the least similar keys instead.
        sorted: Taken for the likeness to ``torch.topk``; results are always sorted.
        progress: Show a progress bar (needs tqdm).
        backend: Which backend serves the call; default: see ``cl_kernels.doctor()``.

    Returns:
        ``TopK(values, indices)``, each [M, k], best first. float32 values (float64 for float64
        embeddings), differentiable with respect to query and key through the pairs found. Keys
        with a NaN are never found; a query with a NaN finds nothing.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
        ImportError: If ``progress`` is asked for without tqdm.
    """
    check_embeddings("query", query)
    keys = as_tensor(key)
    _check_key(keys, query)
    check_count("k", k)
    M, N = query.shape[0], keys.shape[0]
    filters = check_filters(where, (M, N), query.device)
    excluded = None
    if exclude is not None:
        excluded = as_csr("exclude", exclude, M, N, query.device).within_rows_sorted()
    below, above = (_bound(n, b, query) for n, b in (("below", below), ("above", above)))
    name = choose(backend, query.device, query.dtype)
    if name == "triton":  # the compiled library, if there is one, selects from what its scan finds
        reason_against("native", query.device, query.dtype)
    if _recording.active():
        asked = requested(backend)
        source = None if asked is None else asked[1]
        _recording.record("topk", name, source, query, (M, N), query.dtype)
        return nothing_found(query, k)
    if not largest:  # the largest of the negated scores
        below, above = (None if b is None else -b for b in (above, below))

    with torch.no_grad():
        sign = 1.0 if largest else -1.0
        query_factor = inverse_norms(query) if normalize else None
        if not largest:
            ones = query.new_ones(M, dtype=accumulator(query))
            query_factor = -(ones if query_factor is None else query_factor)
        search = Search(
            query.detach().contiguous(), k, query_factor, normalize,
            tuple(f.query_ids for f in filters), tuple(f.key_ids for f in filters),
            [f.keep == "same" for f in filters], excluded, below, above,
            overload("topk", name),
        )  # fmt: skip
        found = search.run(keys.detach(), progress_bar(progress))
        values = found.values if largest else sign * found.values + 0.0  # no -0
    if torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad):
        values = FoundScores.apply(query, keys, values, found.indices, normalize)
    return TopK(values, found.indices)


def as_tensor(key: Any) -> Any:
    """A NumPy array as a tensor of the same memory."""
    if isinstance(key, Tensor) or not hasattr(key, "__array_interface__"):
        return key
    import warnings

    with warnings.catch_warnings():  # a read-only memory map is read only here too
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.from_numpy(key)
        except (TypeError, ValueError) as error:
            raise type(error)(f"key: expected an array that torch can share: {error}") from error


def _check_key(key: Tensor, query: Tensor) -> None:
    check_embeddings("key", key)
    if key.shape[1] != query.shape[1]:
        raise ValueError(f"key: expected the width of query, {query.shape[1]}, got {key.shape[1]}")
    if key.dtype != query.dtype:
        raise TypeError(f"key: expected the dtype of query, {query.dtype}, got {key.dtype}")
    if key.device != query.device and key.device.type != "cpu":
        raise ValueError(f"key: expected host memory or the device of query, got {key.device}")
    if key.device != query.device and key.requires_grad and torch.is_grad_enabled():
        raise ValueError("key: expected no gradient for keys that are streamed from the host")
    if len(key) >= _MOST_KEYS:
        raise ValueError(f"key: expected fewer than {_MOST_KEYS} rows, got {len(key)}")


def _bound(name: str, bound: Bound, query: Tensor) -> Tensor | None:
    """A bound for each query, [M]."""
    if bound is None:
        return None
    if isinstance(bound, Tensor):
        if not bound.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {bound.dtype}")
        if bound.dim() > 1 or (bound.dim() == 1 and len(bound) != len(query)):
            raise ValueError(
                f"{name}: expected a number, or one for each of the {len(query)} queries, "
                f"got shape {list(bound.shape)}"
            )
        if bound.device != query.device and bound.dim():
            raise ValueError(f"{name}: expected the device of query, got {bound.device}")
    elif isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(bound).__name__}")
    bounds = torch.as_tensor(bound, dtype=accumulator(query), device=query.device).detach()
    if readable(bounds) and bool(bounds.isnan().any()):
        raise ValueError(f"{name}: expected numbers, got a NaN")
    return bounds.expand(len(query)).contiguous()
