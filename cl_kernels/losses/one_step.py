"""A loss and its gradients in one step of autograd.

A loss is a short function of vectors: streamed statistics, products of matching rows, numbers. At
small batches autograd's nodes between these take longer than all arithmetic. So a loss may say its
derivative by the vectors itself, and the gradient of a total, which is known up to one factor, is
made in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels._spread import weighs_keys
from cl_kernels._tracing import in_graph
from cl_kernels._transforms import check_backward, differentiable
from cl_kernels.calls import number_tensor
from cl_kernels.losses.batch import WHOLE, Batch, the_batch
from cl_kernels.losses.common import total
from cl_kernels.losses.operands import Rows
from cl_kernels.losses.visits import Visit
from cl_kernels.statistics.autograd import frozen_query_gradient, frozen_scale_gradient
from cl_kernels.statistics.operations import backward, forward, weighted_key
from cl_kernels.statistics.table import STATISTICS

# From the gradient of each row's loss, [R], to those of numbers; None: the gradient is 1, of rows'
# losses or of one total. That of embeddings is added up in these.
Pull = Callable[[Tensor | None], Sequence[Tensor | None]]


def times(grad: Tensor | None, x: Tensor) -> Tensor:
    """Their product, without an operation where the gradient is 1."""
    return x if grad is None else grad * x


class Embeddings:
    """Rows as a loss takes them, and their gradient as far as it is summed up."""

    def __init__(self, rows: Tensor, norm: Tensor | None, trained: bool):
        self.rows, self.norm, self.trained = rows, norm, trained
        self.grad: Tensor | None = None

    @property
    def count(self) -> int:
        return self.rows.shape[0]

    def add(self, grad: Tensor) -> None:
        """``grad`` is nobody else's."""
        if self.trained:
            self.grad = grad if self.grad is None else self.grad.add_(grad)

    def add_weighted(self, weight: Tensor, others: Tensor) -> None:
        """From products with other rows, whose gradient is ``weight``, [M]."""
        if self.trained and self.grad is None:
            self.grad = weight[:, None] * others
        elif self.grad is not None:
            self.grad.addcmul_(weight[:, None], others)

    def add_at(self, index: Tensor, grad: Tensor, batch: Batch = WHOLE) -> None:
        """From rows that were taken of a batch, any number of times."""
        if self.trained:
            self.grad = torch.zeros_like(self.rows) if self.grad is None else self.grad
            batch.add_at(self.grad, index, grad)

    def gradient(self) -> Tensor:
        """Of the embeddings that the rows are made of; it is not summed up any further."""
        grad, self.grad = self.grad, None
        if grad is None:
            return torch.zeros_like(self.rows)
        return Rows(self.rows, self.norm).gradient(grad)


class Streamed:
    """A statistic of embeddings: its values, and how they pull.

    Args:
        visit: Which, of which pairs.
        query: [M, D].
        key: [N, D]; None of a statistic of one.
        scale: Of the logits, a float or 0-d.
        query_bias: Added to the logits, [M].
    """

    def __init__(
        self,
        visit: Visit,
        query: Embeddings,
        key: Embeddings | None = None,
        scale: float | Tensor = 1.0,
        query_bias: Tensor | None = None,
    ):
        self.statistic, self.backend = STATISTICS[visit.statistic], visit.backend
        self.query, self.key, self.scale = query, key, number_tensor(scale, query.rows)
        call = visit.call.concrete()
        self.call = call if query_bias is None else call.with_biases(query_bias, None)
        self.weighted: Tensor | None = None
        self.values = self._values()

    @property
    def value(self) -> Tensor:
        return self.values[0]

    def _values(self) -> tuple[Tensor, ...]:
        statistic, query, key = self.statistic, self.query.rows, self.key
        keys = None if key is None else key.rows
        if self.backend is None:  # it is only noted
            sides = (query, query if keys is None else keys)
            return statistic.from_zeros(*(x.new_zeros(x.shape[0]) for x in sides))
        frozen = key is not None and not key.trained and self.call.pairs.query_bias is None
        in_one_visit = statistic.has_weighted_key and weighs_keys(self.backend)
        if keys is not None and frozen and self.query.trained and in_one_visit:
            given = self.backend, query, keys, self.scale, self.call
            value, self.weighted = weighted_key(statistic, *given)
            return (value,)
        return forward(statistic, self.backend, query, keys, self.scale, self.call)

    def pull(self, *grads: Tensor) -> Tensor:
        """Adds to the embeddings' gradients; returns that of the scale."""
        if self.weighted is None:
            return self.pull_biased(*grads)[0]
        (grad,), query = grads, self.query
        query.add(frozen_query_gradient(grad, self.value, self.weighted, self.scale))
        given = self.weighted, query.rows, self.scale, self.call.compute_dtype
        return frozen_scale_gradient(grad, self.value, *given)

    def pull_biased(self, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """And that of ``query_bias``."""
        query, key = self.query, self.key
        assert self.backend is not None, "nobody asks for gradients of what is only noted"
        of_key = key is not None and key.trained
        wanted = query.trained or not of_key, of_key, self.call.pairs.query_bias is not None, False
        found = backward(
            self.statistic, self.backend, [g.contiguous() for g in grads],
            self.statistic.differentiable(self.values), query.rows,
            None if key is None else key.rows, self.scale, self.call, wanted,
        )  # fmt: skip
        query.add(found.query)
        if key is not None and of_key:
            key.add(found.key)
        return found.scale, found.query_bias


def products(first: Embeddings, second: Embeddings) -> Tensor:
    """Of matching rows, [M]."""
    return (first.rows * second.rows).sum(1)


def pull_products(first: Embeddings, second: Embeddings, grad: Tensor) -> None:
    first.add_weighted(grad, second.rows)
    second.add_weighted(grad, first.rows)


def one_step(loss: Callable[..., tuple[Tensor, Pull]]) -> Callable[..., Tensor]:
    """Makes ``evaluate(embeddings, numbers, settings, normalize, reduction)`` of ``loss``.

    ``loss(*embeddings, *numbers, *settings)`` returns the losses of rows, [R], or one total, and
    how they pull. Embeddings, [M, D], come to it as ``Embeddings``, of unit length if
    ``normalize``; numbers, which may be trained, as 0-d tensors, and None as None. Settings are
    what ``in_graph`` takes. All arguments are positional.
    """

    @in_graph
    @wraps(loss)
    def evaluate(embeddings, numbers, settings, normalize: bool, reduction: str) -> Tensor:
        check_flag("normalize", normalize)
        like = embeddings[0]
        inputs = *embeddings, *[None if x is None else number_tensor(x, like) for x in numbers]
        needs = [x is not None and x.requires_grad for x in inputs]
        count = len(embeddings)
        if torch.is_grad_enabled() and True in needs:
            given = loss, settings, normalize, reduction, needs, count, *inputs
            return differentiable(_OneStep, *given)
        losses = _evaluation(loss, settings, normalize, [False] * count, inputs)[0]
        return total(losses, reduction) if losses.dim() else losses

    return evaluate


def _evaluation(
    loss, settings, normalize: bool, trained: Sequence[bool], inputs
) -> tuple[Tensor, Pull, list[Embeddings]]:
    """The losses, how they pull, and on what."""
    embeddings = [
        Embeddings(*Rows.of((x,), normalize), need)
        for x, need in zip(inputs, trained, strict=False)
    ]
    return *loss(*embeddings, *inputs[len(trained) :], *settings), embeddings


def _gradients(pull: Pull, grad: Tensor | None, embeddings, needs) -> list[Tensor]:
    """Of the inputs that need one."""
    of_numbers = pull(grad)
    found = [x.gradient() for x in embeddings if x.trained]
    of_numbers = zip(of_numbers, needs[len(embeddings) :], strict=True)
    return found + [g for g, need in of_numbers if need]


class _OneStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss, settings, normalize, reduction, needs, count, *inputs):
        losses, pull, embeddings = _evaluation(loss, settings, normalize, needs[:count], inputs)
        ctx.needs, ctx.pull = needs, None
        ctx.dtypes = [x.dtype for x, need in zip(inputs, needs, strict=True) if need]
        if losses.dim() and reduction == "none":
            ctx.pull, ctx.embeddings = pull, embeddings
            ctx.save_for_backward(*_tensors((inputs, settings)))  # to be read again: watched
            return losses
        ctx.save_for_backward(*_gradients(pull, None, embeddings, needs))
        averaged = losses.dim() and reduction == "mean"
        ctx.divisor = max(the_batch().count(losses.shape[0]), 1) if averaged else 1
        return total(losses, reduction) if losses.dim() else losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        check_backward(*grads)
        (grad,), made = grads, ctx.saved_tensors
        if ctx.pull is not None:
            made = _gradients(ctx.pull, grad.contiguous(), ctx.embeddings, ctx.needs)
        else:
            grad = grad if ctx.divisor == 1 else grad / ctx.divisor
            made = [grad * g for g in made]
        # The gradient of float16 is rounded only now: a scaler multiplies the loss.
        found = iter([g.to(dtype) for g, dtype in zip(made, ctx.dtypes, strict=True)])
        return *(None,) * 6, *[next(found) if need else None for need in ctx.needs]


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    return [t for y in x for t in _tensors(y)] if isinstance(x, (tuple, list)) else []
