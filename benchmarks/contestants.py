"""Who runs: for a case, one call of "ours", "eager" or the bare "product", ready to be timed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import cl_kernels
from benchmarks import eager
from benchmarks.cases import Case

TEMPERATURE = {"nt_xent": 0.5, "info_nce": 0.1}
LOGIT_SCALE = 1 / 0.07


def make_inputs(case: Case) -> list[Tensor]:
    """The leaves that get a gradient: embeddings, for clip the learned scale as well."""
    generator = torch.Generator().manual_seed(0)
    halves = case.name == "nt_xent"
    sets = 1 if case.name == "self_logsumexp" else 2
    shape = case.rows // 2 if halves else case.rows, case.width
    inputs = [torch.randn(shape, generator=generator) for _ in range(sets)]
    if case.name not in TEMPERATURE:  # the others normalise by themselves
        inputs = [F.normalize(x) for x in inputs]
    if case.name == "clip":
        inputs.append(torch.tensor(LOGIT_SCALE))
    return [x.requires_grad_() for x in inputs]


def _constants(case: Case) -> tuple[float, ...]:
    return () if case.name == "clip" else (TEMPERATURE.get(case.name, LOGIT_SCALE),)


def _ours(case: Case) -> Callable[..., Tensor | tuple[Tensor, ...]]:
    function = getattr(cl_kernels, case.name)
    if case.name in TEMPERATURE:
        return lambda *args: function(*args[:-1], temperature=args[-1])
    return function


def forward(case: Case, who: str, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """What "ours" or "eager" makes of the inputs, with its graph."""
    function = _ours(case) if who == "ours" else getattr(eager, case.name)
    outputs = function(*inputs, *_constants(case))
    return outputs if isinstance(outputs, tuple) else (outputs,)


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
