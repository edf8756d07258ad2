"""Who runs: for a case, one call of "ours", "eager" or the bare "product", ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

import cl_kernels
from benchmarks.losses.cases import Case
from catalogue import eager
from catalogue.losses import LOSSES

LOGIT_SCALE = 1 / 0.07  # of the primitives
TEMPERATURE = {name: case.typical for name, case in LOSSES.items() if case.inverted}


def make_inputs(case: Case) -> list[Tensor]:
    """The leaves that get a gradient: embeddings, and a scale where users learn it."""
    generator = torch.Generator().manual_seed(0)
    loss = LOSSES.get(case.name)
    sets = 2 if loss or not case.of_one else 1
    rows = case.rows // 2 if loss and loss.views else case.rows
    inputs = [torch.randn(rows, case.width, generator=generator) for _ in range(sets)]
    if loss is None or loss.trains_scale:  # the others normalise by themselves
        inputs = [F.normalize(x) for x in inputs]
    if loss and loss.trains_scale:
        inputs.append(torch.tensor(loss.typical))
    return [x.requires_grad_() for x in inputs]


def _called(case: Case, who: str) -> Callable[..., Any]:
    """ "ours" or "eager", to be called with the inputs."""
    loss = LOSSES.get(case.name)
    if loss is None:
        name = case.name
        function = getattr(cl_kernels, name) if who == "ours" else eager.STATISTICS[name]
        return lambda *inputs: function(*inputs, LOGIT_SCALE)
    if loss.trains_scale:
        return getattr(loss, who)
    form = getattr(loss, who)
    return lambda first, second: form(first, second, **{loss.scale: loss.typical})


def forward(case: Case, who: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """What "ours" or "eager" makes of the inputs, with its graph."""
    return floating(_called(case, who)(*inputs))


def floating(outputs: Any) -> tuple[Tensor, ...]:
    """Those that have a graph, which counts have not."""
    return tuple(x for x in tree_leaves(outputs) if x.is_floating_point())


def backward(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The inputs' gradients of the mean over each output's rows; handed back, not accumulated."""
    upstream = [torch.full_like(y, 1 / max(y.numel(), 1)) for y in outputs]
    return torch.autograd.grad(outputs, inputs, upstream)


def bare_product(case: Case) -> Callable[[], None]:
    """The unit of every CPU ratio: one product into a buffer whose pages are there already."""
    query = torch.randn(case.rows, case.width)
    key = torch.randn(case.rows, case.width) if case.embedding_rows > case.rows else query
    buffer = torch.zeros(case.rows, case.rows)
    buffer.fill_(1)  # zeros alone may leave pages untouched

    def step() -> None:
        torch.mm(query, key.T, out=buffer)

    return step


def contestant(case: Case, who: str) -> Callable[[], tuple[Tensor, ...] | None]:
    """One product, or one forward and backward pass."""
    if who == "product":
        return bare_product(case)
    inputs = make_inputs(case)
    return lambda: backward(forward(case, who, inputs), inputs)
