"""A batch of which each process has some rows, and no process ever has all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from cl_kernels._spread import spreading
from cl_kernels._transforms import check_backward
from cl_kernels.checks import check_filters
from cl_kernels.losses.batch import Batch, sums_by_label
from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.gathering import SumOfAll, gather
from cl_kernels.ranks.group import Ranks
from cl_kernels.ranks.round import Visitors, counts_of_all, go_round, positions, rows_of
from cl_kernels.search import TopK, topk
from cl_kernels.search.gradients import found_gradients, found_products


class PartedBatch(Batch):
    """Every rank asks the same in the same order: each question is a collective.

    Args:
        ranks: The processes.
        device: Where the embeddings are.
    """

    def __init__(self, ranks: Ranks, device: torch.device):
        self._ranks, self._device = ranks, device

    @property
    def ranks(self) -> Ranks:
        return self._ranks

    def count(self, rows: int) -> int:
        return sum(self._counts("their number", rows))

    def positions(self, rows: int, device: torch.device) -> Tensor:
        return positions(self.ranks.rank, torch.arange(rows, device=device))

    def numbers(self, rows: int, device: torch.device) -> Tensor:
        counts = self._counts("their numbers", rows)
        return torch.arange(rows, device=device) + sum(counts[: self.ranks.rank])

    def sum(self, x: Tensor) -> Tensor:
        self._counts("a sum")
        return SumOfAll.apply(x, self.ranks)  # type: ignore[return-value]

    def logsumexp(self, x: Tensor) -> Tensor:
        self._counts("a logarithm")
        return self.ranks.logsumexp(x)

    def everyone(self, x: Tensor) -> Tensor:
        counts = self._counts("vectors", len(x))
        return gather(self.ranks, [x], [counts])[0]

    def softmax(self, x: Tensor) -> Tensor:
        self._counts("a softmax", len(x))
        here = x.detach()
        return (here - self.ranks.logsumexp(here.logsumexp(0))).exp()

    def standardized(self, x: Tensor, eps: float) -> Tensor:
        count = self.count(len(x))
        x = x - self.sum(x.sum(0)) / count
        return x * (self.sum(x.square().sum(0)) / count + eps).rsqrt()

    def topk(self, query: Tensor, key: Tensor, k: int, **options: Any) -> TopK:
        where = options.pop("where", ())
        filters = check_filters(where, (len(query), len(key)), key.device)
        largest = options.get("largest", True)
        best: list[TopK] = []
        counts = self._counts("the nearest", len(key))

        def visit(visitors: Visitors) -> list[Tensor]:
            rows, *ids = visitors.rows
            where = [PairFilter(f.query_ids, i, f.keep) for f, i in zip(filters, ids, strict=True)]
            some = topk(query, rows, k, where=where, **options)
            at = positions(visitors.owner, some.indices)
            best.append(TopK(some.values, torch.where(some.indices < 0, -1, at)))
            best[:] = [_merged(best, k, largest)]
            return []

        go_round(self.ranks, [key, *(f.key_ids for f in filters)], counts, visit)
        return best[0]

    def rows_at(self, rows: Tensor, positions: Tensor) -> Tensor:
        return _RowsAt.apply(rows, positions, self)  # type: ignore[return-value]

    def rows_there(self, rows: Tensor, positions: Tensor) -> Tensor:
        """As ``rows_at``, without a gradient."""
        found = rows.new_zeros((len(positions), *rows.shape[1:]))

        def visit(visitors: Visitors) -> list[Tensor]:
            theirs, row = rows_of(visitors.owner, positions)
            if len(visitors.rows[0]):
                found.copy_(torch.where(theirs[:, None], visitors.rows[0][row], found))
            return []

        go_round(self.ranks, [rows], self._counts("some rows", len(rows)), visit)
        return found

    def add_at(self, total: Tensor, positions: Tensor, grad: Tensor) -> None:
        total.add_(self.sums_at(total, positions, grad))

    def sums_at(self, rows: Tensor, positions: Tensor, grad: Tensor) -> Tensor:
        """For the rows here the sum of what all ranks have for their positions."""

        def visit(visitors: Visitors) -> list[Tensor]:
            theirs, row = rows_of(visitors.owner, positions)
            sums = rows.new_zeros((counts[visitors.owner], *rows.shape[1:]))
            if len(sums):
                sums.index_add_(0, row, torch.where(theirs[:, None], grad, 0))
            return [sums]

        counts = self._counts("gradients of rows", len(rows))
        return go_round(self.ranks, [], counts, visit)[0]

    def similarities(self, query: Tensor, key: Tensor, positions: Tensor) -> Tensor:
        return _Similarities.apply(query, key, positions, self)  # type: ignore[return-value]

    def visited(self, key: Tensor, visit: Callable[[Visitors], list[Tensor]]) -> list[Tensor]:
        """What all ranks' visits of the keys here give."""
        return go_round(self.ranks, [key], self._counts("keys that were found", len(key)), visit)

    def sums_of_label(self, labels: Tensor, rows: Tensor) -> Tensor:
        sums = torch.zeros_like(rows)

        def visit(visitors: Visitors) -> list[Tensor]:
            theirs, of_theirs = visitors.rows
            if len(theirs):
                sums.add_(sums_by_label(labels, theirs, of_theirs))
            return []

        counts = self._counts("sums of labels", len(rows))
        go_round(self.ranks, [rows, labels], counts, visit)
        return sums

    def everybodys(self) -> AbstractContextManager[Any]:
        return spreading.entered(_here)

    def _counts(self, what: str, rows: int = 0) -> list[int]:
        return counts_of_all(self.ranks, what, rows, self._device)


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, positions: Tensor, batch: PartedBatch) -> Tensor:
        ctx.save_for_backward(rows, positions)
        ctx.batch = batch
        return batch.rows_there(rows, positions)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        rows, positions = ctx.saved_tensors
        return ctx.batch.sums_at(rows, positions, grads[0]), None, None


class _Similarities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, positions: Tensor, batch: PartedBatch):
        ctx.save_for_backward(query, key, positions)
        ctx.batch = batch
        values = query.new_full(positions.shape, -torch.inf)

        def visit(visitors: Visitors) -> list[Tensor]:
            theirs, index = _among(visitors, positions)
            if len(visitors.rows[0]):
                found = found_products(query, visitors.rows[0], index)
                values.copy_(torch.where(theirs, found, values))
            return []

        batch.visited(key, visit)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        query, key, positions = ctx.saved_tensors
        of_query = torch.zeros_like(query)

        def visit(visitors: Visitors) -> list[Tensor]:
            index = _among(visitors, positions)[1]
            found = found_gradients(grads[0], query, visitors.rows[0], index, False, True, True)
            of_query.add_(found[0])
            return [found[1]]

        (of_key,) = ctx.batch.visited(key, visit)
        return of_query, of_key, None, None


def _merged(parts: list[TopK], k: int, largest: bool) -> TopK:
    """Of equal ones the first positions, as in one process."""
    values, indices = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    indices, order = indices.sort(1)
    ordered = values.gather(1, order)
    values, best = ordered.sort(dim=1, descending=largest, stable=True)
    return TopK(values[:, :k], indices.gather(1, best[:, :k]))


def _among(visitors: Visitors, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions are of visitors, and their rows; -1 of the others."""
    theirs, rows = rows_of(visitors.owner, positions)
    return theirs, torch.where(theirs, rows, -1)


def _here(backend: str, operation: str) -> str:
    return backend
