"""Inputs that were computed from others: the graph above them is passed through once, at last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cl_kernels.grad_cache.replay import autocast_disabled


class GraphAbove:
    """Cuts tensors off their graphs and hands on the gradients that have gathered.

    Each chunk has a backward pass of its own, and only one of them could pass through a graph that
    they share.
    """

    def __init__(self) -> None:
        self._cut: list[tuple[Tensor, Tensor]] = []  # tensors and their leaves

    def cut(self, inputs: Any) -> Any:
        """The inputs with a leaf in the place of every tensor that has a graph."""
        if isinstance(inputs, Mapping):
            return {key: self.cut(part) for key, part in inputs.items()}
        if isinstance(inputs, tuple):
            return tuple(self.cut(part) for part in inputs)
        if isinstance(inputs, list) and any(map(_has_graph, inputs)):
            return [self.cut(sample) for sample in inputs]
        return self._cut_tensor(inputs)

    def cut_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same for keyword arguments of the loss: tensors only, containers keep their type."""
        return {name: self._cut_tensor(value) for name, value in options.items()}

    def _cut_tensor(self, x: Any) -> Any:
        if not _has_graph(x):
            return x
        self._cut.append((x, x.detach().requires_grad_()))
        return self._cut[-1][1]

    def backward(self) -> None:
        """One backward pass from all that was cut and got a gradient."""
        reached = [(x, leaf.grad) for x, leaf in self._cut if leaf.grad is not None]
        if reached:
            with autocast_disabled():
                torch.autograd.backward([x for x, _ in reached], [grad for _, grad in reached])


def _has_graph(x: Any) -> bool:
    return isinstance(x, Tensor) and x.grad_fn is not None
