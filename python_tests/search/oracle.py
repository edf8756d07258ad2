"""What a top-K must find, said a second time: dense, in NumPy, pair by pair where it filters."""

import numpy as np


def scores(query, key, *, normalize):
    """float64 scores [M, N] of embeddings taken as they are."""
    query, key = (x.detach().double().numpy() for x in (query, key))
    if normalize:
        query, key = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (query, key)
        )
    return query @ key.T


def kept(shape, *, where=(), exclude=None, below=None, above=None, of=None):
    """Which pairs may be found, [M, N]. ``of``: the scores that bounds are held against."""
    keep = np.ones(shape, dtype=bool)
    for f in where:
        same = f.query_ids.numpy()[:, None] == f.key_ids.numpy()[None, :]
        keep &= same if f.keep == "same" else ~same
    if exclude is not None:
        offsets, keys = (x.numpy() for x in exclude)
        for i in range(shape[0]):
            keep[i, keys[offsets[i] : offsets[i + 1]]] = False
    if below is not None:
        keep &= of < np.broadcast_to(np.asarray(below), shape[:1])[:, None]
    if above is not None:
        keep &= of > np.broadcast_to(np.asarray(above), shape[:1])[:, None]
    return keep if of is None else keep & ~np.isnan(of)


def topk(scores, keep, k, *, largest=True):
    """(values, indices) [M, k]: best first, equal scores by index."""
    M = len(scores)
    values = np.full((M, k), -np.inf if largest else np.inf)
    indices = np.full((M, k), -1, dtype=np.int64)
    for i in range(M):
        found = np.flatnonzero(keep[i])
        order = np.lexsort((found, -scores[i, found] if largest else scores[i, found]))[:k]
        indices[i, : len(order)] = found[order]
        values[i, : len(order)] = scores[i, found[order]]
    return values, indices
