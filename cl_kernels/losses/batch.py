"""The batch that a loss is of: what it asks of all rows, beside its statistics."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels._scopes import Scopes
from cl_kernels.pairs import count_same
from cl_kernels.ranks.group import Ranks
from cl_kernels.search import TopK, topk
from cl_kernels.search.gradients import found_products, found_scores


class Batch:
    """All rows are here. Of a batch whose rows several processes have, ``PartedBatch``."""

    @property
    def ranks(self) -> Ranks | None:
        """These processes."""
        return None

    @property
    def parted(self) -> bool:
        return self.ranks is not None

    def count(self, rows: int) -> int:
        """How many rows all have, of which so many are here."""
        return rows

    def positions(self, rows: int, device: torch.device) -> Tensor:
        """An id of each row that is here, which no other row has."""
        return torch.arange(rows, device=device)

    def numbers(self, rows: int, device: torch.device) -> Tensor:
        """Which rows of all those are that are here, counted from 0."""
        return torch.arange(rows, device=device)

    def sum(self, x: Tensor) -> Tensor:
        """What is summed over the rows here, over all rows; differentiable."""
        return x

    def logsumexp(self, x: Tensor) -> Tensor:
        """What is one of the rows here, of all rows; without a gradient."""
        return x

    def everyone(self, x: Tensor) -> Tensor:
        """Of all rows, [N, ...], what is here of these, [n, ...]; differentiable. Of vectors only:
        nobody shall hold all embeddings."""
        return x

    def softmax(self, x: Tensor) -> Tensor:
        """Over all rows, of numbers of these, [n]; without a gradient."""
        return x.softmax(0)

    def standardized(self, x: Tensor, eps: float) -> Tensor:
        """With mean 0 and variance 1 of each column over all rows; differentiable."""
        return F.batch_norm(x, None, None, training=True, eps=eps)

    def topk(self, query: Tensor, key: Tensor, k: int, **options: Any) -> TopK:
        """The most similar keys of all rows, by their positions; without a gradient."""
        return topk(query, key, k, **options)

    def rows_at(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Of all rows those at positions; differentiable."""
        return rows.index_select(0, positions)

    def add_at(self, total: Tensor, positions: Tensor, grad: Tensor) -> None:
        """The transposed: adds to what is there for the rows here."""
        total.index_add_(0, positions, grad)

    def similarities(self, query: Tensor, key: Tensor, positions: Tensor) -> Tensor:
        """Inner products of each query with the keys at its positions, [M, k]; -inf where a
        position is negative. Differentiable; a part of the keys is gathered at a time."""
        values = found_products(query.detach(), key.detach(), positions)
        return found_scores(query, key, values, positions, False)

    def sums_of_label(self, labels: Tensor, rows: Tensor) -> Tensor:
        """Of all rows of the label of each row here, itself included."""
        return sums_by_label(labels, rows, labels)

    def everybodys(self) -> AbstractContextManager[Any]:
        """Inside, statistics are those of keys that every process has."""
        return nullcontext()


def sums_by_label(labels: Tensor, rows: Tensor, row_labels: Tensor) -> Tensor:
    """Sum of the rows [N, D] of each label, [M, D]."""
    ordered = row_labels.sort().values
    class_of_row = torch.searchsorted(ordered, row_labels)  # a number below N
    sums = torch.zeros_like(rows).index_add_(0, class_of_row, rows)
    first = torch.searchsorted(ordered, labels)
    found = sums.index_select(0, first.clamp_(max=max(rows.shape[0] - 1, 0)))
    return found.masked_fill_((count_same(labels, row_labels) == 0)[:, None], 0)


WHOLE = Batch()
parts: Scopes[Batch] = Scopes()


def the_batch() -> Batch:
    """Of the loss that is being computed."""
    part = parts.innermost()
    return WHOLE if part is None else part
