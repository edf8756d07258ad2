"""When DistributedDataParallel reduces the gradients of its module: once, and all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

_latest: WeakKeyDictionary[DistributedDataParallel, Reductions] = WeakKeyDictionary()


class Reductions:
    """Which modules reduce their gradients in a backward pass: as for torch, the forward tells.

    Args:
        modules: Those that are in the forward pass of a call.
    """

    def __init__(self, modules: Iterable[DistributedDataParallel] = ()) -> None:
        self._wanted = {module: bool(module.require_backward_grad_sync) for module in modules}
        for module, wanted in self._wanted.items():
            # Whether the next forward pass first broadcasts the buffers.
            module.require_forward_param_sync = wanted
        self._reduced: list[tuple[DistributedDataParallel, Tensor, Tensor | None, int]] = []

    @contextmanager
    def only_of(
        self, modules: Sequence[DistributedDataParallel], due: Sequence[DistributedDataParallel]
    ) -> Iterator[None]:
        """Of the modules those that are ``due`` reduce, if they were to."""
        before = {module: module.require_backward_grad_sync for module in modules}
        try:
            for module in modules:
                module.require_backward_grad_sync = self._wanted[module] and module in due
            yield
        finally:
            for module, value in before.items():
                module.require_backward_grad_sync = value

    def prepare(self) -> None:
        """For gradients that the backward pass in progress will hand to the parameters later."""
        for module, wanted in self._wanted.items():
            if wanted:
                with torch.enable_grad():  # what it is handed tells who will get a gradient: all
                    reached = [p.flatten()[:0] for p in module.parameters() if p.requires_grad]
                module.reducer.prepare_for_backward(reached)

    def refuse_later_gradients(self, modules: Iterable[DistributedDataParallel]) -> None:
        """Raises at the end of the backward pass if others add to what these have reduced."""
        for module in modules:
            if self._wanted[module]:
                _latest[module] = self
                self._reduced += [
                    (module, p, p.grad, _version(p.grad)) for p in module.parameters()
                ]
        if self._reduced:
            Variable._execution_engine.queue_callback(self._check)

    def _check(self) -> None:
        reduced, self._reduced = self._reduced, []
        for module, p, grad, version in reduced:
            changed = p.grad is not grad or _version(p.grad) != version
            if changed and _latest.get(module) is self:
                raise RuntimeError(
                    "encoders: expected a backward pass without other terms through their "
                    "DistributedDataParallel, got one, whose gradients were added after the "
                    "reduction; pass whole_gradients=True"
                )


def is_sharded(module: nn.Module | None) -> bool:
    """Whether it holds parts of FSDP, of either kind."""
    marks = "_get_fsdp_state", "_fsdp_wrapped_module"
    parts = () if module is None else module.modules()
    return any(hasattr(part, mark) for part in parts for mark in marks)


def check_no_other_backward(module: nn.Module) -> None:
    """Raises if fully_shard is in the backward pass of a module already: it would not end ours."""
    for part in module.modules():
        state: Any = getattr(part, "_get_fsdp_state", lambda: None)()
        context = getattr(state, "_state_ctx", None)
        if getattr(context, "post_backward_final_callback_queued", False):
            raise RuntimeError(
                "encoders: expected a backward pass without other terms through their fully_shard "
                "module, got one; make it part of the loss, or compute it before the call"
            )


def _version(grad: Tensor | None) -> int:
    return -1 if grad is None else grad._version
