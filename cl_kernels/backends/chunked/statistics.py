"""The statistics, one tile of logits at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import accumulator

from .pairs import add_biases, dropped

TILE_ROWS = 512
TILE_COLS = 2048  # a float32 tile and its temporaries take about 50 MB


Values = tuple[Tensor, ...]


class Fold(NamedTuple):
    """What is made of tiles of logits, where dropped pairs are -inf.

    Args:
        start: The first value before the first tile.
        add_tile: ``add_tile(values, logits, dim)``, the values after one more.
        weight: ``weight(logits, value, grad)``: ``grad`` times the first value's derivative by
            each logit; may overwrite the logits.
    """

    start: float
    add_tile: Callable[[Values, Tensor, int], Values]
    weight: Callable[[Tensor, Tensor, Tensor], Tensor]


def _softmax(logits: Tensor, lse: Tensor, grad: Tensor) -> Tensor:
    """A row or column with no kept pair weighs nothing."""
    empty = lse == -torch.inf
    grad, lse = grad.masked_fill(empty, 0), lse.masked_fill(empty, torch.inf)
    return logits.sub_(lse).exp_().mul_(grad)


def _add_logsumexp(values: Values, logits: Tensor, dim: int) -> Values:
    return (torch.logaddexp(values[0], logits.logsumexp(dim)),)


def _add_softplus(values: Values, logits: Tensor, dim: int) -> Values:
    terms = logits.clamp_min(0) + logits.abs().neg_().exp_().log1p_()
    return (values[0] + terms.sum(dim),)


def _sigmoid(logits: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    return logits.sigmoid_().mul_(grad)


def _add_hinge(values: Values, logits: Tensor, dim: int) -> Values:
    total, count = values
    return total + logits.clamp_min(0).sum(dim), count + (logits > 0).sum(dim)


def _step(logits: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    return torch.where(logits > 0, grad, 0 * logits)  # NaN stays NaN


FOLDS = {
    "logsumexp": Fold(-torch.inf, _add_logsumexp, _softmax),
    "softplus_sum": Fold(0.0, _add_softplus, _sigmoid),
    "hinge_sum": Fold(0.0, _add_hinge, _step),
}


class Tile(NamedTuple):
    """Queries i against keys j."""

    i: slice
    j: slice
    logits: Tensor  # [i, j]
    dropped: Tensor | None

    def side(self, vector: Tensor, dim: int) -> Tensor:
        """A vector of the queries (dim 1) or of the keys (dim 0), to be broadcast."""
        return vector[self.i, None] if dim == 1 else vector[None, self.j]


class _Tiles:
    """The tiles of one call, recomputed at each visit."""

    def __init__(self, statistic, query, key, scale, call):
        self.query, self.key = query, query if key is None else key
        self.scale, self.call = scale, call
        self.dtype = accumulator(query)
        self.statistic, self.fold = statistic, FOLDS[statistic.fold.name]
        self.dims = (1, 0) if statistic.sides == "row_col" else (1,)  # what each side sums over

    def new_full(self, size, value: float) -> Tensor:
        return self.query.new_full(size, value, dtype=self.dtype)

    def rows(self, x: Tensor, part: slice) -> Tensor:
        return x[part].to(self.call.compute_dtype).to(self.dtype)

    def __iter__(self) -> Iterator[Tile]:
        for i in range(0, len(self.query), TILE_ROWS):
            for j in range(0, len(self.key), TILE_COLS):
                yield self.tile(slice(i, i + TILE_ROWS), slice(j, j + TILE_COLS))

    def tile(self, i: slice, j: slice) -> Tile:
        similarity = self.rows(self.query, i) @ self.rows(self.key, j).T
        out = dropped(self.call.pairs, similarity, i, j)
        return Tile(i, j, add_biases(self.call.pairs, similarity.mul_(self.scale), i, j), out)

    def values(self) -> tuple[Tensor, ...]:
        sides = [self._start(len(self.query) if dim == 1 else len(self.key)) for dim in self.dims]
        for tile in self:
            logits = _masked(tile.logits, tile.dropped, -torch.inf)
            for values, dim in zip(sides, self.dims, strict=True):
                part = tile.i if dim == 1 else tile.j
                added = self.fold.add_tile(tuple(v[part] for v in values), logits, dim)
                for value, new in zip(values, added, strict=True):
                    value[part] = new
        return tuple(value for values in sides for value in values)

    def _start(self, count: int) -> tuple[Tensor, ...]:
        value, *counts = self.statistic.fold.new_values(self.query, count)
        return value.fill_(self.fold.start), *(c.zero_() for c in counts)

    def weights(self, tile: Tile, grads, values) -> Tensor:
        """d(sum grads * values) / d logits of a tile, which is lost."""
        sides = list(zip(grads, values, self.dims, strict=True))
        total = None
        for grad, value, dim in sides:
            logits = tile.logits.clone() if len(sides) > 1 else tile.logits
            weight = self.fold.weight(logits, tile.side(value, dim), tile.side(grad, dim))
            weight = _masked(weight, tile.dropped, 0)
            total = weight if total is None else total.add_(weight)
        assert total is not None
        return total


def _masked(values: Tensor, out: Tensor | None, fill: float) -> Tensor:
    return values if out is None else values.masked_fill_(out, fill)


def _add_weighted_sum(total: Tensor, weights: Tensor, rows: Tensor, out: Tensor | None):
    """``total += weights @ rows``, where a dropped pair adds nothing even to a NaN row."""
    finite = rows.isfinite().all(1)
    total.addmm_(weights, torch.where(finite[:, None], rows, 0))
    touched = ~finite if out is None else ~(out | finite)
    total.masked_fill_(touched.expand_as(weights).any(1)[:, None], torch.nan)


def forward(statistic, query, key, scale, call):
    return _Tiles(statistic, query, key, scale, call).values()


def weighted_key(statistic, query, key, scale, call):
    tiles = _Tiles(statistic, query, key, scale, call)
    values = tiles.values()
    grads = (torch.ones_like(values[0]),)
    total = tiles.new_full(query.shape, 0)
    for tile in tiles:
        weights = tiles.weights(tile, grads, values)
        _add_weighted_sum(total[tile.i], weights, tiles.rows(tiles.key, tile.j), tile.dropped)
    return *values, total


def _inner(tiles: _Tiles, x: Tensor, grad: Tensor) -> Tensor:
    """<x, grad>. Where the gradient is exactly zero no kept pair touched the row, whatever it
    holds."""
    total = tiles.new_full((), 0)
    for start in range(0, len(x), TILE_ROWS):
        part = slice(start, start + TILE_ROWS)
        total += (tiles.rows(x, part) * grad[part]).masked_fill_(grad[part] == 0, 0).sum()
    return total


def backward(statistic, grads, values, query, key, scale, call, needs):
    """Both gradients from one visit."""
    tiles = _Tiles(statistic, query, key, scale, call)
    need_query, need_key, *need_biases = needs
    if statistic.of_one:
        need_query = need_key = True
    grad_biases = [
        tiles.new_full((len(x) if need else 0,), 0)
        for x, need in zip((tiles.query, tiles.key), need_biases, strict=True)
    ]
    grad_query = tiles.new_full(tiles.query.shape if need_query else (0,), 0)
    grad_key = tiles.new_full(tiles.key.shape if need_key else (0,), 0)
    for tile in tiles:
        weights = tiles.weights(tile, grads, values)
        i, j, out = tile.i, tile.j, tile.dropped
        if need_query:
            _add_weighted_sum(grad_query[i], weights, tiles.rows(tiles.key, j), out)
        if need_key:
            mirrored = None if out is None else out.T
            _add_weighted_sum(grad_key[j], weights.T, tiles.rows(tiles.query, i), mirrored)
        for grad, need, part, dim in zip(grad_biases, need_biases, (i, j), (1, 0), strict=True):
            if need:
                grad[part] += weights.sum(dim)
    x, grad = (tiles.query, grad_query) if need_query else (tiles.key, grad_key)
    grad_scale = _inner(tiles, x, grad) if need_query or need_key else tiles.new_full((), 0)
    if statistic.of_one:
        grad_query, grad_key = grad_query.add_(grad_key), grad_key.new_empty(0)
    return grad_query.mul_(scale), grad_key.mul_(scale), grad_scale, *grad_biases
