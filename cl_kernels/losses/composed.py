"""The composition that most losses are: rows, a statistic over negatives, positives, an epilogue.

It is differentiated once, here, for every backend and every epilogue: the positives' gradient is
added into the statistic's own buffer. A compiled library may have the same in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels.calls import Call
from cl_kernels.losses.common import total
from cl_kernels.losses.epilogues import EPILOGUES
from cl_kernels.losses.rows import stack_rows, unstack_gradient
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.operations import backward, forward, weighted_key
from cl_kernels.statistics.table import STATISTICS, Statistic


class Composition(NamedTuple):
    """What a call is, beside its embeddings and its scale.

    Args:
        backend: Who computes the statistic.
        call: Its options. No filter touches the further negatives.
        statistic: By name. Of "self" the two embeddings are views: the statistic is that of their
            2B stacked rows, and a row's positive is its other view. Of "row" and "row_col" key i
            is the positive of query i; a pair's loss is the mean of its directions.
        epilogue: By name.
        normalize: Divide rows by their length first.
    """

    backend: str
    call: Call
    statistic: str
    epilogue: str
    normalize: bool

    @property
    def of_rows(self) -> Statistic:
        return STATISTICS[self.statistic]

    @property
    def of_further(self) -> Statistic:
        """Of the rows against further negatives."""
        return STATISTICS["row_" + self.of_rows.fold.name]

    def of_all(self) -> Call:
        return self.call._replace(pairs=Pairs())


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


class Sides(NamedTuple):
    """The two sides of the matrix (one for views, whose keys are their queries), and more keys."""

    query: Rows
    key: Rows | None
    further: Rows | None

    @classmethod
    def of(cls, first: Tensor, second: Tensor, negative_keys: Tensor | None, c: Composition):
        views = c.of_rows.of_one
        query = Rows.of((first, second) if views else (first,), c.normalize)
        key = None if views else Rows.of((second,), c.normalize)
        further = None if negative_keys is None else Rows.of((negative_keys,), c.normalize)
        return cls(query, key, further)

    @property
    def keys(self) -> Tensor | None:
        return None if self.key is None else self.key.rows

    @property
    def positives(self) -> tuple[Tensor, Tensor]:
        """Both rows of each positive pair, [B, D] each."""
        return halves(self.query.rows) if self.key is None else (self.query.rows, self.key.rows)


class Step:
    """One evaluation: of the losses and, as long as its tensors are there, of their gradients."""

    def __init__(self, c: Composition, sides: Sides, scale: Tensor):
        self.c, self.sides, self.scale = c, sides, scale
        self.further: tuple[Tensor, Tensor] | None = None

    def statistics(self, needs: Sequence[bool]) -> Tensor:
        """The negatives' statistic of each direction and the positives' similarity, [S + 1, B]."""
        c, query = self.c, self.sides.query.rows
        first, second = self.sides.positives
        values = forward(c.of_rows, c.backend, query, self.sides.keys, self.scale, c.call)
        negatives = torch.cat(values).view(c.of_rows.directions, first.shape[0])  # [directions, B]
        if self.sides.further is not None:
            further = self._further_statistic(query, self.sides.further.rows, needs)
            negatives = torch.logaddexp(negatives, further.view_as(negatives))
        return torch.cat((negatives, (first * second).sum(1)[None]))

    def _further_statistic(self, query: Tensor, keys: Tensor, needs: Sequence[bool]) -> Tensor:
        c = self.c
        arguments = c.of_further, c.backend, query, keys, self.scale, c.of_all()
        if needs[2] or not any(needs):
            return forward(*arguments)[0]
        # Of keys that are not trained one visit gives the queries' gradient too.
        self.further = weighted_key(*arguments)
        return self.further[0]

    def losses(self, statistics: Tensor) -> Tensor:
        """Of 2B rows of views, or of B pairs."""
        value = EPILOGUES[self.c.epilogue].value
        losses = value(statistics[:-1], self.scale * statistics[-1])
        return losses.view(-1) if self.c.of_rows.of_one else losses.mean(0)

    def gradients(
        self, grad: Tensor, statistics: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        """Of the first, the second, the further negatives and the scale, for ``grad`` of the
        losses, [rows] or []. Those of views stand stacked in the first's place; what is not needed
        is empty."""
        needs_first, needs_second, needs_further, _ = needs
        sides, similarity = self.sides, statistics[-1]
        views = sides.key is None
        by_query = views or needs_first or not needs_second  # <query, grad> gives the scale's
        by_negatives, by_positive = self._pulls(grad, statistics)
        grad_query, grad_key, grad_scale = self._of_negatives(
            by_negatives, statistics[:-1], (by_query, needs_second)
        )
        grad_further = grad_query.new_empty(0)
        if sides.further is not None:
            more, grad_further, of_scale = self._of_further(
                sides.further.rows, by_negatives, statistics[:-1], (by_query, needs_further)
            )
            grad_query, grad_scale = grad_query.add_(more), grad_scale + of_scale
            if needs_further:
                grad_further = sides.further.gradient(grad_further)
        grad_scale = grad_scale + (by_positive * similarity).sum()
        self._add_positives(grad_query, grad_key, (self.scale * by_positive)[:, None])
        if needs_first or (views and needs_second):
            grad_query = sides.query.gradient(grad_query)
        else:
            grad_query = grad_query.new_empty(0)
        if sides.key is not None and needs_second:
            grad_key = sides.key.gradient(grad_key)
        return grad_query, grad_key, grad_further, grad_scale

    def _pulls(self, grad: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the total by each negatives' statistic, [directions, B], and by each
        positive's logit, [B]."""
        negatives, similarity = statistics[:-1], statistics[-1]
        pulls = EPILOGUES[self.c.epilogue].pulls(negatives, self.scale * similarity)
        if self.c.of_rows.of_one:
            share = grad.view_as(negatives) if grad.dim() else grad
        else:
            share = grad / len(negatives)
        by_negatives, by_positive = (pull * share for pull in pulls)
        return by_negatives, by_positive.sum(0)

    def _per_side(self, x: Tensor) -> list[Tensor]:
        """What is [directions, B] as the statistic's sides have it."""
        return [x.reshape(-1)] if self.c.of_rows.of_one else list(x.unbind())

    def _of_negatives(self, grad: Tensor, negatives: Tensor, needs) -> tuple[Tensor, ...]:
        c, sides = self.c, self.sides
        upstream = self._per_side(grad), self._per_side(negatives)
        arguments = sides.query.rows, sides.keys, self.scale, c.call, needs
        return backward(c.of_rows, c.backend, *upstream, *arguments)

    def _of_further(
        self, keys: Tensor, grad: Tensor, negatives: Tensor, needs
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, query = self.c, self.sides.query.rows
        grad, negatives = grad.reshape(-1), negatives.reshape(-1)
        if self.further is None:
            arguments = query, keys, self.scale, c.of_all(), needs
            return backward(c.of_further, c.backend, [grad], [negatives], *arguments)
        lse, mean_key = self.further
        # This set's share of all negatives; an empty set has none.
        share = torch.where(lse == -torch.inf, 0, grad * (lse - negatives).exp())
        sums = mean_key.mul_(share[:, None])
        rounded = query.to(c.call.compute_dtype).to(query.dtype)
        grad_scale = torch.where(sums == 0, 0, rounded * sums).sum()
        return sums * self.scale, query.new_empty(0), grad_scale

    def _add_positives(self, grad_query: Tensor, grad_key: Tensor, weight: Tensor) -> None:
        first, second = self.sides.positives
        views = self.sides.key is None
        grad_first, grad_second = halves(grad_query) if views else (grad_query, grad_key)
        if grad_first.numel():
            grad_first.addcmul_(second, weight)
        if grad_second.numel():
            grad_second.addcmul_(first, weight)


def contrast(backend: str, first, second, negative_keys, scale, *arguments) -> tuple[Tensor, ...]:
    """The operation, composed: the loss, what ``contrast_backward`` needs of it and, of a total,
    the gradients."""
    *call, statistic, epilogue, normalize, reduction, needs = arguments
    needs = (False,) * 4 if reduction == "none" else needs
    c = Composition(backend, Call.of(call), statistic, epilogue, normalize)
    step = Step(c, Sides.of(first, second, negative_keys, c), scale)
    statistics = step.statistics(needs)
    losses = step.losses(statistics)
    if not any(needs):
        gradients = (*(losses.new_empty(0) for _ in range(3)), losses.new_zeros(()))
    else:
        share = losses.new_ones(()) / (max(len(losses), 1) if reduction == "mean" else 1)
        gradients = step.gradients(share, statistics, needs)
    return total(losses, reduction), statistics, *gradients


def contrast_backward(
    backend: str, grad, statistics, first, second, negative_keys, scale, *arguments
) -> tuple[Tensor, ...]:
    """The gradients for ``grad`` of each row's loss."""
    *call, statistic, epilogue, normalize, needs = arguments
    c = Composition(backend, Call.of(call), statistic, epilogue, normalize)
    step = Step(c, Sides.of(first, second, negative_keys, c), scale)
    return step.gradients(grad, statistics, needs)
