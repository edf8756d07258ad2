"""The embeddings of a loss as its composition takes them: rows, by side of the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from cl_kernels.statistics.rows import stack_rows, unstack_gradient


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of both views. (``chunk`` would have torch.export take the batch for a constant.)"""
    half = rows.shape[0] // 2
    return rows[:half], rows[half:]


class Rows(NamedTuple):
    """Embeddings in the accumulation type, of unit length if normalized."""

    rows: Tensor
    norm: Tensor | None

    @classmethod
    def of(cls, inputs: Sequence[Tensor], normalize: bool) -> Rows:
        return cls(*stack_rows(inputs, normalize))

    def gradient(self, grad_rows: Tensor) -> Tensor:
        """Of the inputs; the rows' is lost."""
        return unstack_gradient(grad_rows, self.rows, self.norm)


class Operands(NamedTuple):
    """The two sides of the matrix (one for views, whose keys are their queries), and more keys:
    of all queries, or, where it is said which of them count, of each its own."""

    query: Rows
    key: Rows | None
    further: Rows | None
    counted: Tensor | None

    @classmethod
    def of(cls, inputs: Sequence[Tensor | None], views: bool, normalize: bool) -> Operands:
        first, second, negative_keys, counted = inputs
        assert first is not None and second is not None
        query = Rows.of((first, second) if views else (first,), normalize)
        key = None if views else Rows.of((second,), normalize)
        if negative_keys is None:
            return cls(query, key, None, None)
        if counted is not None:  # what padding holds is of no concern
            negative_keys = negative_keys.masked_fill(~counted.view(-1, 1), 0)
        return cls(query, key, Rows.of((negative_keys,), normalize), counted)

    @property
    def keys(self) -> Tensor | None:
        return None if self.key is None else self.key.rows

    @property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Both rows of each positive pair, [B, D] each."""
        return halves(self.query.rows) if self.key is None else (self.query.rows, self.key.rows)
