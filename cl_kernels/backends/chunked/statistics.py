"""The statistics, one tile of logits at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cl_kernels._precision import accumulator

TILE_ROWS = 512
TILE_COLS = 2048  # a float32 tile and its temporaries take about 50 MB


class _Tiles:
    """The tiles of one call's logits, recomputed at each visit."""

    def __init__(self, query, key, scale, query_ids, key_ids, keep_same, *options):
        self.query, self.key, self.scale = query, key, scale
        self.filters = list(zip(query_ids, key_ids, keep_same, strict=True))
        self.compute_dtype = options[4]
        self.dtype = accumulator(query)

    def new_full(self, size, value: float) -> Tensor:
        return self.query.new_full(size, value, dtype=self.dtype)

    def rows(self, x: Tensor, part: slice) -> Tensor:
        return x[part].to(self.compute_dtype).to(self.dtype)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for i in range(0, len(self.query), TILE_ROWS):
            for j in range(0, len(self.key), TILE_COLS):
                yield slice(i, i + TILE_ROWS), slice(j, j + TILE_COLS)

    def logits(self, i: slice, j: slice) -> Tensor:
        return self.scale * (self.rows(self.query, i) @ self.rows(self.key, j).T)

    def dropped(self, i: slice, j: slice) -> Tensor | None:
        dropped = None
        for query_ids, key_ids, same in self.filters:
            equal = query_ids[i, None] == key_ids[None, j]
            out = ~equal if same else equal
            dropped = out if dropped is None else dropped | out
        return dropped


def _masked(values: Tensor, dropped: Tensor | None, fill: float) -> Tensor:
    return values if dropped is None else values.masked_fill_(dropped, fill)


def _weights(logits: Tensor, lse: Tensor, grad: Tensor, dropped: Tensor | None) -> Tensor:
    """d(sum grad * lse) / d logits; a row or column with no kept pair weighs nothing."""
    empty = lse == -torch.inf
    grad, lse = grad.masked_fill(empty, 0), lse.masked_fill(empty, torch.inf)
    return _masked((logits - lse).exp_().mul_(grad), dropped, 0)


def _add_weighted_sum(total: Tensor, weights: Tensor, rows: Tensor, dropped: Tensor | None):
    """``total += weights @ rows``, where a dropped pair adds nothing even to a NaN row."""
    finite = rows.isfinite().all(1)
    total.addmm_(weights, torch.where(finite[:, None], rows, 0))
    touched = ~finite if dropped is None else ~(dropped | finite)
    total.masked_fill_(touched.expand_as(weights).any(1)[:, None], torch.nan)


def _backward(tiles: _Tiles, weights_of, need_query: bool, need_key: bool):
    """Both gradients from one visit; ``weights_of(logits, dropped, i, j)`` gives a tile of W."""
    grad_query = tiles.new_full(tiles.query.shape if need_query else (0,), 0)
    grad_key = tiles.new_full(tiles.key.shape if need_key else (0,), 0)
    for i, j in tiles:
        dropped = tiles.dropped(i, j)
        weights = weights_of(tiles.logits(i, j), dropped, i, j)
        if need_query:
            _add_weighted_sum(grad_query[i], weights, tiles.rows(tiles.key, j), dropped)
        if need_key:
            mirrored = None if dropped is None else dropped.T
            _add_weighted_sum(grad_key[j], weights.T, tiles.rows(tiles.query, i), mirrored)
    x, grad = (tiles.query, grad_query) if need_query else (tiles.key, grad_key)
    grad_scale = tiles.new_full((), 0)
    for start in range(0, len(x), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        # Where the gradient is exactly zero no kept pair touched the row, whatever it holds.
        product = tiles.rows(x, part) * grad[part]
        grad_scale += product.masked_fill_(grad[part] == 0, 0).sum()
    return grad_query.mul_(tiles.scale), grad_key.mul_(tiles.scale), grad_scale


def row_logsumexp(query, key, scale, *options):
    tiles = _Tiles(query, key, scale, *options)
    row = tiles.new_full((len(query),), -torch.inf)
    for i, j in tiles:
        logits = _masked(tiles.logits(i, j), tiles.dropped(i, j), -torch.inf)
        row[i] = torch.logaddexp(row[i], logits.logsumexp(1))
    return row


def row_logsumexp_mean_key(query, key, scale, *options):
    lse = row_logsumexp(query, key, scale, *options)
    tiles = _Tiles(query, key, scale, *options)
    mean_key = tiles.new_full(query.shape, 0)
    for i, j in tiles:
        dropped = tiles.dropped(i, j)
        column = lse[i, None]
        weights = _weights(tiles.logits(i, j), column, torch.ones_like(column), dropped)
        _add_weighted_sum(mean_key[i], weights, tiles.rows(key, j), dropped)
    return lse, mean_key


def row_logsumexp_backward(grad, lse, query, key, scale, *options):
    *options, need_query, need_key = options

    def weights_of(logits, dropped, i, j):
        return _weights(logits, lse[i, None], grad[i, None], dropped)

    tiles = _Tiles(query, key, scale, *options)
    return _backward(tiles, weights_of, need_query, need_key)


def row_col_logsumexp(query, key, scale, *options):
    tiles = _Tiles(query, key, scale, *options)
    row = tiles.new_full((len(query),), -torch.inf)
    col = tiles.new_full((len(key),), -torch.inf)
    for i, j in tiles:
        logits = _masked(tiles.logits(i, j), tiles.dropped(i, j), -torch.inf)
        row[i] = torch.logaddexp(row[i], logits.logsumexp(1))
        col[j] = torch.logaddexp(col[j], logits.logsumexp(0))
    return row, col


def row_col_logsumexp_backward(grad_row, grad_col, row, col, query, key, scale, *options):
    *options, need_query, need_key = options

    def weights_of(logits, dropped, i, j):
        of_rows = _weights(logits, row[i, None], grad_row[i, None], dropped)
        return of_rows.add_(_weights(logits, col[None, j], grad_col[None, j], dropped))

    tiles = _Tiles(query, key, scale, *options)
    return _backward(tiles, weights_of, need_query, need_key)


def self_logsumexp(x, scale, *options):
    return row_logsumexp(x, x, scale, *options)


def self_logsumexp_backward(grad, lse, x, scale, *options):
    grad_query, grad_key, grad_scale = row_logsumexp_backward(
        grad, lse, x, x, scale, *options, True, True
    )
    return grad_query.add_(grad_key), grad_scale
