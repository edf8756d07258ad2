"""Our functions under torch.func: ``grad`` works, what would be wrong is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # type: ignore[attr-defined]
from torch.autograd import forward_ad

from cl_kernels._tracing import in_graph

_NO_TANGENT = (
    "{}: expected no tangent, got one: forward-mode differentiation (jvp) is not supported; "
    "torch.autograd.grad and torch.func.grad are"
)
_NO_VMAP = "{}: expected no tensor under vmap, got one: call in a loop"


def differentiable(function: type[torch.autograd.Function], *args) -> Any:
    """``function.apply``, and the same inside ``torch.func.grad``."""
    if not _active():
        return function.apply(*args)
    context = _Context()
    outputs = _Transformed.apply(function, context, *args)
    return outputs[0] if context.count == 1 else outputs[: context.count]


@in_graph
def refuse_transforms(name: str, x: Tensor) -> Tensor:
    """x; raises for a tangent or a batch of ``vmap``, which the kernels would not see."""
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(_NO_TANGENT.format(name))
    if _active():
        _refuse_batch(name, x)
    return x


def _refuse_batch(name: str, x: Tensor) -> None:
    if _batched(x):
        raise NotImplementedError(_NO_VMAP.format(name))


def check_backward(*grads: Tensor) -> None:
    """To be called by every hand-written backward: under create_graph it would be wrong."""
    for grad in grads:
        _refuse_batch("grad", grad)
    # torch.func.grad always keeps a graph of its backward pass: it is read at a second level.
    twice = _functorch.maybe_current_level() > 1 if _active() else torch.is_grad_enabled()
    if twice:
        raise RuntimeError(
            "cl_kernels: double backward (create_graph=True) is not supported: the gradients of "
            "the streamed statistics are not differentiable. The function that torch.func.vjp "
            "returns asks for it unless it is called under torch.no_grad()"
        )


def _active() -> bool:
    return torch._C._are_functorch_transforms_active()


def _batched(x: Tensor) -> bool:
    if _functorch.is_legacy_batchedtensor(x):  # torch.autograd.grad(is_grads_batched=True)
        return True
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


class _Context(SimpleNamespace):
    """Takes what a function keeps for its backward pass."""

    saved: tuple = ()

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        self.saved = tensors

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """They are those that hold no floating-point numbers."""


class _Transformed(torch.autograd.Function):
    """Another function in the form that torch.func asks for: what is kept leaves as an output.

    Not the form of all functions, because ``apply`` then takes 40 us more.
    """

    @staticmethod
    def forward(function, context: _Context, *args):
        result = function.forward(context, *args)
        outputs = result if isinstance(result, tuple) else (result,)
        context.count = len(outputs)
        return *outputs, *(None if x is None else x.detach() for x in context.saved)

    @staticmethod
    def setup_context(ctx: Any, inputs, output):
        ctx.function, ctx.context = inputs[:2]
        own, kept = output[: ctx.context.count], output[ctx.context.count :]
        constant = (x for x in own if not x.is_floating_point())
        ctx.mark_non_differentiable(*constant, *(x for x in kept if x is not None))
        ctx.save_for_backward(*kept)

    @staticmethod
    def vmap(info, in_dims, *args):
        raise NotImplementedError(_NO_VMAP.format("input"))

    @staticmethod
    def jvp(ctx: Any, *tangents):
        raise NotImplementedError(_NO_TANGENT.format("input"))

    @staticmethod
    def backward(ctx: Any, *grads):
        context = SimpleNamespace(**vars(ctx.context))
        context.saved_tensors = ctx.saved_tensors
        context.needs_input_grad = ctx.needs_input_grad[2:]
        gradients = ctx.function.backward(context, *grads[: context.count])
        return None, None, *(gradients if isinstance(gradients, tuple) else (gradients,))
