"""One search: in one call of the operation, or on blocks of queries or keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels._ops import define
from cl_kernels._precision import accumulator
from cl_kernels.csr import CSR
from cl_kernels.pairs import PAIRS, Pairs

from .operations import scan_by
from .scores import TopK, inverse_norms, nothing_found
from .stream import blocks, progress_bar

_CALL_PRODUCTS = 1 << 40  # multiply-adds a call: seconds, after which an interrupt is heard


class Search(NamedTuple):
    """One call, ready to be run on the whole or on blocks of queries or keys."""

    query: Tensor
    k: int
    query_factor: Tensor | None
    normalize: bool
    pairs: Pairs
    excluded: CSR | None
    compute: Callable[..., tuple[Tensor, Tensor]]

    def run(self, key: Tensor, bar: Callable[..., Any]) -> TopK:
        """The best of these keys; the bar is shown how far the search is."""
        if key.device != self.query.device:
            return self._streamed(key, bar)
        M, N, D = len(self.query), *key.shape
        key = key.contiguous()
        key_factor = inverse_norms(key) if self.normalize else None
        rows = max(256, _CALL_PRODUCTS // max(1, N * D) // 256 * 256)
        if rows >= M:
            with bar(total=M, unit="query") as shown:
                found = self._call(key, key_factor)
                shown.update(M)
            return found
        found = nothing_found(self.query, self.k)
        with bar(total=M, unit="query") as shown:
            for first in range(0, M, rows):
                part = slice(first, min(first + rows, M))
                block = self._rows(part)._call(key, key_factor)
                found.values[part], found.indices[part] = block
                shown.update(part.stop - part.start)
        return found

    def _rows(self, part: slice) -> Search:
        excluded = self.excluded
        if excluded is not None:
            offsets = excluded.offsets[part.start : part.stop + 1]
            keys = excluded.keys[offsets[0] : offsets[-1]] if len(offsets) else excluded.keys
            excluded = CSR(offsets - offsets[0], keys)
        return self._replace(
            query=self.query[part],
            query_factor=None if self.query_factor is None else self.query_factor[part],
            pairs=self.pairs.of_queries(part),
            excluded=excluded,
        )

    def _call(self, key: Tensor, key_factor: Tensor | None) -> TopK:
        offsets, keys = self.excluded or (None, None)
        values, indices = self.compute(
            self.query, key, self.k, self.query_factor, key_factor,
            offsets, keys, *self.pairs,
        )  # fmt: skip
        return TopK(values, indices)

    def _streamed(self, key: Tensor, bar: Callable[..., Any]) -> TopK:
        """Keys come block by block; each block is searched above what was found before."""
        found = nothing_found(self.query, self.k)
        with bar(total=len(key), unit="key") as shown:
            for first, block in blocks(key, self.query.device):
                last = first + len(block)
                # What equals the k-th score found has a larger index: strictly above is right.
                worst = found.values[:, -1].contiguous()
                above = worst if self.pairs.above is None else self.pairs.above.maximum(worst)
                part = self._replace(
                    pairs=self.pairs.of_keys(slice(first, last))._replace(above=above),
                    excluded=self.excluded and self.excluded.between(first, last),
                )
                more = part._call(block, inverse_norms(block) if self.normalize else None)
                indices = torch.where(more.indices < 0, -1, more.indices + first)
                values, order = torch.cat([found.values, more.values], 1).sort(
                    dim=1, descending=True, stable=True
                )
                indices = torch.cat([found.indices, indices], 1).gather(1, order)
                found = TopK(values[:, : self.k].contiguous(), indices[:, : self.k].contiguous())
                shown.update(len(block))
        return found


def search(
    query, key, k, normalize, largest, backend, exclude_offsets, exclude_keys, *pairs, bar=None
):
    """Scores and indices of the best keys, each [M, k], by the named backend."""
    query_factor, pairs = inverse_norms(query) if normalize else None, Pairs(*pairs)
    if not largest:  # the largest of the negated scores
        pairs = pairs.negated()
        ones = query.new_ones(len(query), dtype=accumulator(query))
        query_factor = -(ones if query_factor is None else query_factor)
    excluded = None if exclude_offsets is None else CSR(exclude_offsets, exclude_keys)
    scan = Search(query.contiguous(), k, query_factor, normalize, pairs, excluded, scan_by(backend))
    values, indices = scan.run(key, progress_bar(False) if bar is None else bar)
    return values if largest else 0.0 - values, indices  # no -0


def _search_fake(query, key, k, *_):
    places = query.shape[0], k
    values = query.new_empty(places, dtype=accumulator(query))
    return values, query.new_empty(places, dtype=torch.int64)


# The same as one operation: its blocks would have torch.compile compile for every size.
search_traced = define(
    "search(Tensor query, Tensor key, SymInt k, bool normalize, bool largest, str backend,"
    f" Tensor? exclude_offsets, Tensor? exclude_keys, {PAIRS}) -> (Tensor, Tensor)",
    search,
    _search_fake,
)
