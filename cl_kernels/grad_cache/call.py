"""One call of a GradCache: all inputs are encoded, and the loss is taken of their embeddings."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cl_kernels.grad_cache.above import GraphAbove
from cl_kernels.grad_cache.checking import Loss, check_loss, check_trained
from cl_kernels.grad_cache.pending import Pending, check_used
from cl_kernels.grad_cache.replay import ModuleState
from cl_kernels.grad_cache.tower import Tower


class Call:
    """Towers before they encode, with what their modules' buffers are.

    Args:
        towers: One for each input.
        above: What inputs were cut off from.
        allow_unused: Whether the loss may leave out an input.
        whole_gradients: Whether parameters get their gradients in one piece anyway.
        checked: Names of towers that were seen to repeat themselves; gets those of this call.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        above: GraphAbove,
        *,
        allow_unused: bool,
        whole_gradients: bool,
        checked: set[str],
    ) -> None:
        self._towers, self._above = towers, above
        self._allow_unused, self._whole_gradients = allow_unused, whole_gradients
        self._checked = checked
        modules = dict.fromkeys(tower.module for tower in towers)
        self._pending: Callable[[], Pending | None] = lambda: None
        self.states = {m: ModuleState(m) for m in modules if m is not None}

    @property
    def ddp(self) -> list[DistributedDataParallel]:
        return [part for tower in self._towers if tower.trained for part in tower.ddp]

    def loss(self, loss: Callable[..., Any], options: Mapping[str, Any]) -> Loss:
        """Encodes everything; the loss has a graph if gradients are enabled."""
        wholes = [tower.encode_all() for tower in self._towers]
        if not torch.is_grad_enabled():
            return check_loss(loss(*chain.from_iterable(wholes), **options))
        pending = Pending(
            self._towers,
            self._states_of_trained(),
            self._above,
            allow_unused=self._allow_unused,
            whole_gradients=self._whole_gradients,
            checked=self._checked,
        )
        embeddings = pending.connected(wholes)
        del wholes
        found = check_loss(loss(*embeddings, **options))
        check_trained(found)
        self._pending = weakref.ref(pending)
        del pending, embeddings
        if self._pending() is None:  # nor is it in the loss's graph
            self._check_unused()
            return found
        for part in found.values() if isinstance(found, Mapping) else (found,):
            if part.requires_grad:
                part.register_hook(partial(_check_pass, self._pending))
        return found

    def await_backward(self) -> None:
        """From now on a backward pass that never comes is warned of."""
        pending = self._pending()
        if pending is not None:
            pending.awaited = True

    def check_done(self) -> None:
        """After a backward pass that should have reached the embeddings."""
        pending = self._pending()
        if pending is not None and not pending.used:
            self._check_unused()

    def _check_unused(self) -> None:
        if not self._allow_unused:
            check_used([tower.input_name for tower in self._towers if tower.trained])

    def _states_of_trained(self) -> dict[nn.Module, ModuleState]:
        trained = [tower.module for tower in self._towers if tower.trained]
        return {m: s for m, s in self.states.items() if any(m is module for module in trained)}


def _check_pass(pending: Callable[[], Pending | None], grad: Tensor) -> None:
    """A pass may reach the loss and not the embeddings, or meet other errors on its way."""
    waiting = pending()
    if waiting is not None:
        waiting.check_pass()
