"""Inputs that require gradients: what is above them gets its gradient once, when all is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cl_kernels.grad_cache.replay import autocast_disabled


class GraphAbove:
    """Cuts tensors off what is above them and keeps both ends.

    Each chunk has a backward pass of its own, and only one of them could pass through a graph that
    they share.

    Args:
        cuts: Which tensors are cut off.
    """

    def __init__(self, cuts: Callable[[Tensor], bool]) -> None:
        self._cuts = cuts
        self.tensors: list[Tensor] = []
        self.leaves: list[Tensor] = []  # of each of these the one in its place

    def cut(self, inputs: Any) -> Any:
        """The inputs with a leaf in the place of every such tensor."""
        if isinstance(inputs, Mapping):
            return {key: self.cut(part) for key, part in inputs.items()}
        if isinstance(inputs, tuple):
            return tuple(self.cut(part) for part in inputs)
        if isinstance(inputs, list) and any(map(self._is_cut, inputs)):
            return [self.cut(sample) for sample in inputs]
        return self._cut_tensor(inputs)

    def cut_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same for keyword arguments of the loss: tensors only, containers keep their type."""
        return {name: self._cut_tensor(value) for name, value in options.items()}

    def backward(self) -> None:
        """One backward pass from all that was cut and got a gradient."""
        ends = zip(self.tensors, self.leaves, strict=True)
        reached = [(x, leaf.grad) for x, leaf in ends if leaf.grad is not None]
        if reached:
            with autocast_disabled():
                torch.autograd.backward([x for x, _ in reached], [grad for _, grad in reached])

    def _cut_tensor(self, x: Any) -> Any:
        if not self._is_cut(x):
            return x
        self.tensors.append(x)
        self.leaves.append(x.detach().requires_grad_())
        return self.leaves[-1]

    def _is_cut(self, x: Any) -> bool:
        return isinstance(x, Tensor) and self._cuts(x)


def has_graph(x: Tensor) -> bool:
    return x.grad_fn is not None


def requires_grad(x: Tensor) -> bool:
    return x.requires_grad
