"""Exact top-K, one tile of scores at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cl_kernels._precision import accumulator

from ..packed import EMPTY, largest, pack, unpack
from .pairs import dropped

# Every tile is padded to this shape, so that a pair's product has the same bits in any batch. In
# one whose columns are no multiple of 48 the last ones get other bits from MKL.
SEARCH_ROWS, SEARCH_COLS = 64, 3840


class _SearchTiles:
    """The kept scores of one search, a padded tile at a time; -inf where a pair is dropped."""

    def __init__(self, query, key, query_factor, key_factor, exclude_offsets, exclude_keys, pairs):
        self.query, self.key, self.pairs = query, key, pairs
        self.dtype = accumulator(query)
        self.query_factor, self.key_factor = query_factor, key_factor
        self.excluded = None
        if exclude_offsets is not None:
            index = torch.arange(len(query), device=query.device)
            rows = index.repeat_interleave(exclude_offsets.diff())
            self.excluded = rows, exclude_keys

    def _padded(self, x: Tensor, part: slice, size: int) -> Tensor:
        rows = x[part].to(self.dtype)
        return torch.nn.functional.pad(rows, (0, 0, 0, size - len(rows)))

    def scores(self, i: slice, j: slice) -> Tensor:
        query = self._padded(self.query, i, SEARCH_ROWS)
        products = query @ self._padded(self.key, j, SEARCH_COLS).T
        scores = products[: i.stop - i.start, : j.stop - j.start]
        if self.key_factor is not None:
            scores = scores * self.key_factor[j]
        if self.query_factor is not None:
            scores = scores * self.query_factor[i, None]
        return torch.where(self._kept(scores, i, j), scores, -torch.inf) + 0.0  # -0 counts as +0

    def _kept(self, scores: Tensor, i: slice, j: slice) -> Tensor:
        kept = scores > -torch.inf  # not NaN either
        out = dropped(self.pairs, scores, i, j)
        if out is not None:
            kept &= ~out
        if self.excluded is not None:
            rows, keys = self.excluded
            here = (rows >= i.start) & (rows < i.stop) & (keys >= j.start) & (keys < j.stop)
            kept[rows[here] - i.start, keys[here] - j.start] = False
        return kept


def _topk_packed(tiles: _SearchTiles, i: slice, k: int) -> tuple[Tensor, Tensor]:
    pairs = [tiles.query.new_full((i.stop - i.start, k), EMPTY, dtype=torch.int64)]
    waiting = 0
    for j in _parts(len(tiles.key), SEARCH_COLS):
        pairs.append(pack(tiles.scores(i, j), j.start))
        waiting += j.stop - j.start
        if waiting >= k:  # selecting a large k after every tile would take longer than the tiles
            pairs, waiting = [largest(torch.cat(pairs, 1), k)], 0
    return unpack(largest(torch.cat(pairs, 1), k))


def _topk_sorted(tiles: _SearchTiles, i: slice, k: int) -> tuple[Tensor, Tensor]:
    """float64 scores leave no room for an index: a stable sort prefers what came first."""
    shape = i.stop - i.start, k
    values = tiles.query.new_full(shape, -torch.inf)
    indices = tiles.query.new_full(shape, -1, dtype=torch.int64)
    for j in _parts(len(tiles.key), SEARCH_COLS):
        scores = tiles.scores(i, j)
        index = torch.arange(j.start, j.stop, device=scores.device).expand_as(scores)
        index = index.masked_fill(scores == -torch.inf, -1)
        values, order = torch.cat([values, scores], 1).sort(dim=1, descending=True, stable=True)
        values, order = values[:, :k], order[:, :k]
        indices = torch.cat([indices, index], 1).gather(1, order)
    return values, indices


def _parts(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def topk(query, key, k, *options):
    tiles = _SearchTiles(query, key, *options)
    values = query.new_empty((len(query), k), dtype=tiles.dtype)
    indices = query.new_empty((len(query), k), dtype=torch.int64)
    of_rows = _topk_sorted if tiles.dtype == torch.float64 else _topk_packed
    for i in _parts(len(query), SEARCH_ROWS):
        values[i], indices[i] = of_rows(tiles, i, k)
    return values, indices
