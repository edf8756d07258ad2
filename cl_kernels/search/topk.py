"""Exact top-K of the similarity matrix, which is never held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from cl_kernels import _recording
from cl_kernels._dispatch import choose
from cl_kernels._numbers import check_flag
from cl_kernels.calls import Call, note_call, request_of
from cl_kernels.checks import Bound, as_bound, check_count, check_embeddings, check_filters
from cl_kernels.csr import CSR, Lists, left_out
from cl_kernels.pairs import Where, as_pairs
from cl_kernels.ranks.group import Group

from .gradients import found_scores
from .scan import search, search_traced
from .scores import TopK, nothing_found
from .shards import ShardedKeys, over_shards
from .stream import progress_bar

if TYPE_CHECKING:
    import numpy

_MOST_KEYS = 1 << 31


def topk(
    query: Tensor | numpy.ndarray,
    key: Tensor | numpy.ndarray,
    k: int,
    *,
    normalize: bool = True,
    where: Where = (),
    exclude: Lists | None = None,
    keep: Tensor | None = None,
    below: Bound = None,
    above: Bound = None,
    largest: bool = True,
    sorted: bool = True,
    progress: bool = False,
    group: Group | None = None,
    backend: str | None = None,
) -> TopK:
    """The k most similar keys of each query: exact, filtered inside the scan, never M x N.

    Scores are cosines or, with ``normalize=False``, inner products. Embeddings are multiplied as
    they are, and divided by their lengths in float32 afterwards. Equal scores are ordered by key
    index, on every backend. Memory beyond the results does not grow with N.

    Exact means: every pair is scored, in float32 (float64 for float64 embeddings), with the same
    bits in every batch. Keys whose true cosines differ by less than about 1e-6 may change places, a
    cosine may exceed 1 by as much, and rows longer than 1e19 overflow: scale such rows down first.

    Args:
        query: Embeddings, shape [M, D]. float32, float16, bfloat16 or float64; cast to the keys'
            dtype where they differ.
        key: Embeddings, shape [N, D]. A tensor on the query's device; or one in host memory
            (pinned or not), or a NumPy array or memory map, of any size: it is streamed to the
            query's device in blocks, the next one copied while the last is searched.
        k: How many, at least 1; may exceed N.
        normalize: Score by cosine. A zero vector scores 0 with everything.
        where: Up to three ``PairFilter``; a pair is kept if every filter keeps it.
        exclude: Keys to leave out for each query: a ``CSR`` (offsets [M + 1], keys [nnz]), one
            key a query [M], [M, P] padded with -1, a boolean [M, N], or Python lists. On a GPU
            wrong indices leave nothing out; ``debug_checks`` finds them.
        keep: The keys each query may find, a boolean [M, N], where there is room for one.
        below: Keep scores strictly below this: a number, or one for each query, [M].
        above: Keep scores strictly above this.
        largest: False finds the least similar keys instead.
        sorted: Taken for the likeness to ``torch.topk``; results are always sorted.
        progress: Show a progress bar (needs tqdm).
        group: Of torch.distributed: the keys are those of all its ranks, rank 0's first, of which
            each passes its own (and their ids in ``where``). Queries are this rank's; ``exclude``,
            ``keep`` and the indices found count the keys of all. No gradient.
        backend: Which backend serves the call; default: see ``cl_kernels.doctor()``.

    Returns:
        ``TopK(values, indices)``, each [M, k], best first. float32 values (float64 for float64
        embeddings), differentiable with respect to query and key through the pairs found. Keys
        with a NaN are never found; a query with a NaN finds nothing.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
        ImportError: If ``progress`` is asked for without tqdm.
    """
    if group is not None:
        return over_shards(topk, locals())
    if isinstance(key, ShardedKeys):
        options: dict[str, Any] = {
            "normalize": normalize, "where": where, "exclude": exclude, "below": below,
            "above": above, "largest": largest, "progress": progress, "backend": backend,
        }  # fmt: skip
        return key.search(topk, cast(Tensor, query), k, **options)
    queries: Tensor = as_tensor(query, "query")
    keys: Tensor = as_tensor(key)
    check_embeddings("query", queries)
    _check_key(keys, queries)
    queries = queries.to(keys.dtype)
    k = check_count("k", k, _MOST_KEYS - 1)
    check_flag("normalize", normalize)
    check_flag("largest", largest)
    M, N = queries.shape[0], keys.shape[0]
    filters = check_filters(where, (M, N), queries.device)
    excluded = None
    if exclude is not None:
        excluded = left_out("exclude", exclude, M, N, queries.device)
    if keep is not None:
        excluded = _but_for(keep, excluded, M, N, queries.device)
    below, above = (as_bound(n, b, queries) for n, b in (("below", below), ("above", above)))
    pairs = as_pairs(filters, below=below, above=above)
    request = request_of("topk", queries, Call(pairs, queries.dtype, None))
    name = choose(backend, request)
    if _recording.active():
        note_call(request, name, backend, queries, (M, N))
        return nothing_found(queries, k)

    arguments: tuple[Any, ...] = (
        queries.detach(), keys.detach(), k, normalize, largest, name,
        *(excluded or (None, None)), *pairs,
    )  # fmt: skip
    with torch.no_grad():
        if torch.compiler.is_compiling():
            values, indices = search_traced(*arguments)
        else:
            values, indices = search(*arguments, bar=progress_bar(progress))
    if torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad):
        values = found_scores(queries, keys, values, indices, normalize)
    return TopK(values, indices)


def _but_for(keep: Tensor, excluded: CSR | None, M: int, N: int, device: torch.device) -> CSR:
    """Lists of all that ``keep`` does not name, and of what is excluded already."""
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
        kind = keep.dtype if isinstance(keep, Tensor) else type(keep).__name__
        raise TypeError(f"keep: expected a boolean tensor, got {kind}")
    dropped = ~keep
    if excluded is not None and dropped.shape == (M, N):
        inside = excluded.keys >= 0
        dropped[excluded.rows()[inside], excluded.keys[inside]] = True
    return left_out("keep", dropped, M, N, device)


def as_tensor(key: Any, name: str = "key") -> Any:
    """A NumPy array as a tensor of the same memory."""
    if isinstance(key, Tensor) or not hasattr(key, "__array_interface__"):
        return key
    import warnings

    with warnings.catch_warnings():  # a read-only memory map is read only here too
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        try:
            return torch.from_numpy(key)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: expected an array that torch can share: {error}") from error


def _check_key(key: Tensor, query: Tensor) -> None:
    check_embeddings("key", key)
    if key.shape[1] != query.shape[1]:
        raise ValueError(f"key: expected the width of query, {query.shape[1]}, got {key.shape[1]}")
    if key.device != query.device and key.device.type != "cpu":
        raise ValueError(f"key: expected host memory or the device of query, got {key.device}")
    if key.device != query.device and key.requires_grad and torch.is_grad_enabled():
        raise ValueError("key: expected no gradient for keys that are streamed from the host")
    if not torch.compiler.is_compiling() and key.shape[0] >= _MOST_KEYS:
        raise ValueError(f"key: expected fewer than {_MOST_KEYS} rows, got {key.shape[0]}")
