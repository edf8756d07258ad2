"""The composition that most losses are: rows, a statistic over negatives, positives, an epilogue.

It is differentiated once, here, for every backend and every epilogue: the positives' gradient is
added into the statistic's own buffer. A compiled library may have the same in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cl_kernels._spread import of_shared, positions, weighs_keys
from cl_kernels.calls import Call
from cl_kernels.losses.batch import the_batch
from cl_kernels.losses.common import total
from cl_kernels.losses.epilogues import EPILOGUES
from cl_kernels.losses.operands import Operands, halves
from cl_kernels.losses.own_keys import OwnKeys
from cl_kernels.pairs import Pairs
from cl_kernels.statistics.operations import Gradients, backward, forward, weighted_key
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
        in_batch: Whether the batch's other keys are negatives at all. If not, the statistic is
            "row", of the further negatives alone, and the call's filters are on these.
    """

    backend: str
    call: Call
    statistic: str
    epilogue: str
    normalize: bool
    in_batch: bool

    @property
    def of_rows(self) -> Statistic:
        return STATISTICS[self.statistic]

    @property
    def of_further(self) -> Statistic:
        """Of the rows against further negatives."""
        return STATISTICS["row_" + self.of_rows.fold.name]

    def of_batch(self, first: Tensor) -> Composition:
        """With what an operation's call leaves to be said of rows like these: a positive is no
        negative, and one bias is that of every row."""
        pairs, views = self.call.pairs, self.of_rows.of_one
        if self.in_batch:
            ids = positions(self.backend, first.shape[0], first.device)
            ids = torch.cat((ids, ids)) if views else ids
            pairs = pairs.without(ids, ids)
        if pairs.query_bias is not None and not pairs.query_bias.dim():
            rows = first.shape[0] * (2 if views else 1)
            pairs = pairs._replace(query_bias=pairs.query_bias.expand(rows).contiguous())
        return self._replace(call=self.call._replace(pairs=pairs))

    def of_all(self) -> Call:
        """Of the rows against further negatives: what is said of the batch's keys does not hold."""
        if not self.in_batch:
            return self.call
        return self.call._replace(pairs=Pairs(query_bias=self.call.pairs.query_bias))


class Needs(NamedTuple):
    """Which gradients are wanted."""

    first: bool
    second: bool
    negative_keys: bool
    scale: bool
    query_bias: bool
    key_bias: bool

    def of(self, views: bool, each: Sequence[Any]) -> list[Any]:
        """What of six is for a gradient that is needed: those of views stand stacked in the first's
        place."""
        first = self.first or (views and self.second)
        wanted = self._replace(first=first, second=self.second and not views)
        return [x for x, need in zip(each, wanted, strict=True) if need]

    def spread(self, views: bool, gradients: Iterable[Tensor]) -> list[Tensor | None]:
        """What ``of`` took together: six again, None for what is not needed."""
        found = iter(gradients)
        if not (views and (self.first or self.second)):
            return [next(found) if need else None for need in self]
        both = zip(halves(next(found)), self[:2], strict=True)
        of_views = [half if need else None for half, need in both]
        return of_views + [next(found) if need else None for need in self[2:]]


NO_NEEDS = Needs(*(False,) * 6)


class Step:
    """One evaluation: of the losses and, as long as its tensors are there, of their gradients."""

    def __init__(
        self,
        c: Composition,
        inputs: Sequence[Tensor | None],
        margin: Tensor | None,
        scale: Tensor,
        needs: Needs,
    ):
        first, bias = inputs[0], c.call.pairs.query_bias
        assert first is not None
        self.c, self.scale, self.needs = c.of_batch(first), scale, needs
        self.margin = margin  # factors, offsets and slopes of the positives' similarities
        self.one_bias = bias is not None and not bias.dim()
        self.views = c.of_rows.of_one
        self.operands = Operands.of(inputs, self.views, c.normalize)
        # <query, grad> gives the scale's gradient where the key's is not made.
        self.by_query = self.views or needs.first or not needs.second
        self.frozen: tuple[Tensor, Tensor] | None = None  # of further keys that are not trained

    def statistics(self) -> Tensor:
        """The negatives' statistic of each direction and the positives' similarity, [S + 1, B]."""
        c, query = self.c, self.operands.query.rows
        first, second = self.operands.positives
        sets = []
        if c.in_batch:
            values = forward(c.of_rows, c.backend, query, self.operands.keys, self.scale, c.call)
            sets.append(torch.cat(tuple(c.of_rows.differentiable(values))))
        if self.operands.further is not None:
            sets.append(self._further_statistic(query, self.operands.further.rows))
        negatives = reduce(c.of_rows.fold.union, sets).view(c.of_rows.directions, first.shape[0])
        return torch.cat((negatives, (first * second).sum(1)[None]))  # [directions + 1, B]

    def _further_statistic(self, query: Tensor, keys: Tensor) -> Tensor:
        c = self.c
        if self.operands.counted is not None:
            return self._own_keys(query, keys, self.operands.counted).logsumexp()
        arguments = c.of_further, of_shared(c.backend), query, keys, self.scale, c.of_all()
        query_only = self.by_query and any(self.needs) and not self.needs.negative_keys
        if not (query_only and c.of_further.has_weighted_key and weighs_keys(arguments[1])):
            return forward(*arguments)[0]
        # Of keys that are not trained one visit gives the queries' gradient too.
        self.frozen = weighted_key(*arguments)
        return self.frozen[0]

    def _own_keys(self, query: Tensor, keys: Tensor, counted: Tensor) -> OwnKeys:
        assert self.c.of_rows.fold.name == "logsumexp", self.c.statistic
        return OwnKeys(query, keys, counted, self.scale, self.c.call.pairs.query_bias)

    def losses(self, statistics: Tensor) -> Tensor:
        """Of 2B rows of views, or of B pairs."""
        value = EPILOGUES[self.c.epilogue].value
        losses = value(statistics[:-1], self._positives(statistics))
        return losses.view(-1) if self.views else losses.mean(0)

    def _positives(self, statistics: Tensor) -> Tensor:
        """Their logits: [directions, B], or [B] where all directions have the same."""
        logits, pairs = self.scale * self._shifted(statistics[-1]), self.c.call.pairs
        if pairs.query_bias is not None:
            logits = logits + self._of_rows(pairs.query_bias)
        if pairs.key_bias is not None:  # the key of a view's row is the other view's
            logits = logits + self._of_rows(pairs.key_bias).flip(0)
        return logits

    def _shifted(self, similarity: Tensor) -> Tensor:
        return similarity if self.margin is None else self.margin[0] * similarity + self.margin[1]

    def _of_rows(self, x: Tensor) -> Tensor:
        """What is there for each row of the matrix, by direction: [directions, B], or [1, B]."""
        return x.view(2 if self.views else 1, -1)

    def gradients(self, grad: Tensor, statistics: Tensor) -> list[Tensor]:
        """Those that are needed, for ``grad`` of the losses, [rows] or []: see ``Needs.of``."""
        needs, operands, similarity = self.needs, self.operands, statistics[-1]
        by_negatives, by_positives = self._pulls(grad, statistics)
        of_pairs = self._of_negatives(by_negatives, statistics[:-1])
        grad_query, grad_key, grad_scale, grad_query_bias, grad_key_bias = of_pairs
        grad_further = grad_query.new_empty(0)
        if operands.further is not None:
            more = self._of_further(operands.further.rows, by_negatives, statistics[:-1])
            grad_query = grad_query.add_(more.query) if self.by_query else grad_query
            grad_scale = grad_scale + more.scale
            if needs.query_bias:
                grad_query_bias = grad_query_bias + more.query_bias
            if needs.negative_keys:
                grad_further = operands.further.gradient(more.key)
        by_similarity = by_positives.sum(0)  # [B]
        slope = self.scale if self.margin is None else self.scale * self.margin[2]
        self._add_positives(grad_query, grad_key, (slope * by_similarity)[:, None])
        if needs.query_bias:
            grad_query_bias = grad_query_bias + self._to_rows(by_positives)
        if needs.key_bias:
            grad_key_bias = grad_key_bias + self._to_rows(by_positives.flip(0))
        if needs.first or (self.views and needs.second):
            grad_query = operands.query.gradient(grad_query)
        if operands.key is not None and needs.second:
            grad_key = operands.key.gradient(grad_key)
        grad_scale = grad_scale + (by_similarity * self._shifted(similarity)).sum()
        if self.one_bias and needs.query_bias:
            grad_query_bias = grad_query_bias.sum()
        biases = grad_query_bias, grad_key_bias
        return needs.of(self.views, (grad_query, grad_key, grad_further, grad_scale, *biases))

    def _to_rows(self, by_direction: Tensor) -> Tensor:
        """The gradient of what ``_of_rows`` spread."""
        return by_direction.reshape(-1) if self.views else by_direction.sum(0)

    def _pulls(self, grad: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the total by each negatives' statistic and by each positive's logit,
        [directions, B] each."""
        negatives = statistics[:-1]
        pulls = EPILOGUES[self.c.epilogue].pulls(negatives, self._positives(statistics))
        if self.views:
            share = grad.view_as(negatives) if grad.dim() else grad
        else:
            share = grad / len(negatives)
        by_negatives, by_positives = (pull * share for pull in pulls)
        return by_negatives, by_positives

    def _per_side(self, x: Tensor) -> list[Tensor]:
        """What is [directions, B] as the statistic's sides have it."""
        return [x.reshape(-1)] if self.views else list(x.unbind())

    def _of_negatives(self, grad: Tensor, negatives: Tensor) -> Gradients:
        c, operands, needs = self.c, self.operands, self.needs
        upstream = self._per_side(grad), self._per_side(negatives)
        wanted = self.by_query, needs.second, needs.query_bias, needs.key_bias
        if not c.in_batch:
            return self._no_gradients(wanted)
        arguments = operands.query.rows, operands.keys, self.scale, c.call, wanted
        return backward(c.of_rows, c.backend, *upstream, *arguments)

    def _no_gradients(self, wanted: tuple[bool, ...]) -> Gradients:
        """Zeros, to which those of others are added."""
        query, key = self.operands.positives
        likes = query, key, query[:, 0], key[:, 0]
        of_query, of_key, *of_biases = (
            like.new_zeros(like.shape if want else 0)
            for like, want in zip(likes, wanted, strict=True)
        )
        return Gradients(of_query, of_key, query.new_zeros(()), *of_biases)

    def _of_further(self, keys: Tensor, grad: Tensor, negatives: Tensor) -> Gradients:
        c, query, needs = self.c, self.operands.query.rows, self.needs
        grad, negatives = grad.reshape(-1), negatives.reshape(-1)
        if self.operands.counted is not None:
            return self._own_keys(query, keys, self.operands.counted).gradients(grad, negatives)
        if self.frozen is None:
            by_query = self.by_query or not needs.negative_keys  # of one the scale's is made
            wanted = by_query, needs.negative_keys, needs.query_bias, False
            arguments = query, keys, self.scale, c.of_all(), wanted
            backend = of_shared(c.backend)
            return backward(c.of_further, backend, [grad], [negatives], *arguments)
        lse, weighted = self.frozen
        # This set's share of all negatives; an empty set has none.
        share = torch.where(lse == -torch.inf, 0, grad * (lse - negatives).exp())
        sums = weighted.mul_(share[:, None])
        rounded = query.to(c.call.compute_dtype).to(query.dtype)
        grad_scale = torch.where(sums == 0, 0, rounded * sums).sum()
        empty = query.new_empty(0)
        return Gradients(sums * self.scale, empty, grad_scale, share, empty)

    def _add_positives(self, grad_query: Tensor, grad_key: Tensor, weight: Tensor) -> None:
        first, second = self.operands.positives
        grad_first, grad_second = halves(grad_query) if self.views else (grad_query, grad_key)
        if grad_first.numel():
            grad_first.addcmul_(second, weight)
        if grad_second.numel():
            grad_second.addcmul_(first, weight)


def contrast(
    backend: str, first, second, negative_keys, counted, margin, scale, *arguments
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The operation, composed: the loss, what ``contrast_backward`` needs of it and, of a total,
    the gradients that are needed."""
    *call, statistic, epilogue, normalize, in_batch, reduction, wanted = arguments
    needs = NO_NEEDS if reduction == "none" else Needs(*wanted)
    c = Composition(backend, Call.of(call), statistic, epilogue, normalize, in_batch)
    inputs = first, second, negative_keys, counted
    step = Step(c, inputs, margin, scale, needs)
    statistics = step.statistics()
    losses = step.losses(statistics)
    gradients = []
    if any(needs):
        count = max(the_batch().count(len(losses)), 1) if reduction == "mean" else 1
        share = losses.new_ones(()) / count
        gradients = step.gradients(share, statistics)
    return total(losses, reduction), statistics, gradients


def contrast_backward(
    backend: str, grad, statistics, first, second, negative_keys, counted, margin, scale, *arguments
) -> list[Tensor]:
    """The gradients for ``grad`` of each row's loss."""
    *call, statistic, epilogue, normalize, in_batch, wanted = arguments
    c = Composition(backend, Call.of(call), statistic, epilogue, normalize, in_batch)
    inputs = first, second, negative_keys, counted
    step = Step(c, inputs, margin, scale, Needs(*wanted))
    return step.gradients(grad, statistics)
