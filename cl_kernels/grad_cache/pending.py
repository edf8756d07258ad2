"""From the embeddings of a call back into the encoders: a node of autograd's graph."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cl_kernels.grad_cache.above import GraphAbove, requires_grad
from cl_kernels.grad_cache.failure import undone_by_errors
from cl_kernels.grad_cache.reductions import Reductions, check_no_other_backward, is_sharded
from cl_kernels.grad_cache.replay import Autocast, ModuleState, RandomStates, Unchanged
from cl_kernels.grad_cache.tower import Tower
from cl_kernels.grad_cache.wrappers import waiting_for_whole_gradients

Gradients = Sequence[Tensor | None]


class Pending:
    """A call whose backward pass is to come: what it will need, and what is told if it never comes.

    Args:
        towers: When they have encoded.
        states: Of the modules of those that are trained, from before.
        above: Inputs that get gradients.
        allow_unused: Whether the loss may leave out the embeddings of an input.
        whole_gradients: Whether parameters get their gradients in one piece anyway.
        checked: Gets the names of the towers that were seen to repeat themselves.

    Attributes:
        whole: Parameters whose gradients are summed up over the chunks and handed on at the end.
        awaited: Whether it is warned of if the backward pass never comes.
        used: Whether it came.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        states: Mapping[nn.Module, ModuleState],
        above: GraphAbove,
        *,
        allow_unused: bool,
        whole_gradients: bool,
        checked: set[str],
    ) -> None:
        self._towers, self._states, self._above = list(towers), dict(states), above
        towers = [tower for tower in towers if tower.trained]
        self._allow_unused, self._checked = allow_unused, checked
        self._autocast = Autocast()
        self._reductions = Reductions(chain.from_iterable(tower.ddp for tower in towers))
        self._leaves = list(dict.fromkeys(chain.from_iterable(t.leaves for t in towers)))
        self._readers = {x: tower for tower in reversed(towers) for x in tower.read()}
        self._unchanged = Unchanged(list(self._readers))
        self.whole = waiting_for_whole_gradients(self._leaves, whole_gradients)
        self._check_whole(towers)
        self.awaited = self.used = False

    def connected(self, wholes: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """The towers' embeddings, one after the other, those that are trained with a graph."""
        requiring = chain.from_iterable(tower.requiring for tower in self._towers)
        marked = list(zip(chain.from_iterable(wholes), requiring, strict=True))
        if not any(required for _, required in marked):
            return [x for x, _ in marked]
        anchor = torch.empty(0, device="cpu", requires_grad=True)
        outputs: Iterator[Tensor] = iter(
            _Embeddings.apply(  # type: ignore[arg-type]
                self,
                [x for x, required in marked if required],
                anchor,
                *self._above.tensors,
                *self.whole,
            )
        )
        return [next(outputs) if required else x for x, required in marked]

    def backward(self, gradients: Gradients) -> list[Tensor | None]:
        """Fills the encoders' ``.grad``; returns the gradients of the inputs, and of ``whole``."""
        self.awaited = False
        self.check_pass()
        self.used = True
        try:
            return self._backward(self._of_each_tower(gradients))
        finally:
            self._free()

    def _free(self) -> None:
        """The loss may live on."""
        self._towers, self._states, self._leaves, self.whole = [], {}, [], []
        self._above, self._unchanged = GraphAbove(requires_grad), Unchanged()
        self._readers = {}

    def _backward(self, gradients: dict[Tower, Gradients]) -> list[Tensor | None]:
        self._check_used(gradients)
        self._unchanged.check(lambda x: self._readers[x].describe(x))
        for module in self._states:
            check_no_other_backward(module)
        sources = [*self._above.leaves, *self.whole]
        collected: list[Tensor | None] = [None] * len(sources)

        def propagate(roots: list[Tensor], seeds: list[Tensor]) -> None:
            if not self.whole:
                torch.autograd.backward(roots, seeds)
                return
            found = torch.autograd.grad(roots, sources, seeds, allow_unused=True)
            for place, grad in enumerate(found):
                before = collected[place]
                # Not in place: two of these may be one tensor.
                collected[place] = before if grad is None else _sum(before, grad)

        with self._as_in_the_call():
            self._encode_again(gradients, propagate)
        self._checked.update(tower.name for tower in gradients)
        if self.whole:
            _check_collected(collected)
            self._reductions.prepare()
            return collected
        return [leaf.grad for leaf in self._above.leaves]

    def _encode_again(self, gradients: dict[Tower, Gradients], propagate: Any) -> None:
        """In the order of the first encoding: buffers pass through the same values.

        With ``whole`` DDP has nothing to reduce before the end.
        """
        steps = [(tower, number) for tower in gradients for number in range(len(tower.chunks))]
        last: dict[DistributedDataParallel, tuple[Tower, int]] = {}
        for tower, number in steps:
            if not self.whole and any(grad is not None for grad in gradients[tower]):
                last |= dict.fromkeys(tower.ddp, (tower, number))
        for tower, number in steps:
            due = [ddp for ddp in tower.ddp if last.get(ddp) == (tower, number)]
            with self._reductions.only_of(tower.ddp, due):
                tower.backward(number, gradients[tower], propagate)
        self._reductions.refuse_later_gradients(last)

    @contextmanager
    def _as_in_the_call(self) -> Iterator[None]:
        """Its autocast and the buffers from before it; afterwards all is as it was found."""
        found, random_state = [ModuleState(module) for module in self._states], RandomStates(1)
        with undone_by_errors(found, self._leaves):
            for state in self._states.values():
                state.restore()
            with self._autocast.entered(), torch.enable_grad():
                yield
        for state in found:
            state.restore()
        random_state.restore(0)

    def _of_each_tower(self, gradients: Gradients) -> dict[Tower, Gradients]:
        """A gradient or None for each of its embeddings."""
        following = iter(gradients)
        return {
            tower: [next(following) if required else None for required in tower.requiring]
            for tower in self._towers
            if tower.trained
        }

    def check_pass(self) -> None:
        """Raises in a backward pass other than the first ``loss.backward()``."""
        if self.used:
            raise RuntimeError(
                "loss: expected one backward pass, got a second: what it encodes again was freed; "
                "add up losses and call backward() once"
            )
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError(
                "loss: expected loss.backward(), got torch.autograd.grad or backward(inputs=...): "
                "gradients of a GradCache go into .grad, chunk by chunk"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "loss: expected a backward pass without create_graph=True, got one with it: the "
                "gradients of a GradCache are not differentiable"
            )

    def _check_used(self, gradients: dict[Tower, Gradients]) -> None:
        unused = [
            tower.input_name
            for tower, grads in gradients.items()
            if all(grad is None for grad in grads)
        ]
        if not self._allow_unused:
            check_used(unused)

    def _check_whole(self, towers: Sequence[Tower]) -> None:
        where = (
            "where gradients are handed on in one piece (whole_gradients, the forward pass of a "
            "DistributedDataParallel, or hooks after their accumulation)"
        )
        if any(p._backward_hooks for p in self.whole):
            raise ValueError(
                f"encoders: expected no hooks on gradients of parameters {where}, got one, which "
                "would run twice"
            )
        if self.whole and any(is_sharded(tower.module) for tower in towers):
            raise ValueError(
                f"encoders: expected no fully_shard {where}, got a module that reduces its "
                "gradients chunk by chunk"
            )

    def __del__(self) -> None:
        if getattr(self, "awaited", False) and not sys.is_finalizing():
            warnings.warn(
                "GradCache: a loss was dropped without backward(), so its gradients were not "
                "filled; call loss.backward(), or cache.step(...) for all at once, or compute "
                "losses that are only looked at under torch.no_grad()",
                RuntimeWarning,
                stacklevel=2,
            )


def check_used(unused: Sequence[str]) -> None:
    """Raises if there are inputs whose embeddings the loss has no gradient for."""
    if unused:
        raise ValueError(
            f"{', '.join(unused)}: expected to be used by the loss, got no gradient for the "
            "embeddings; leave the input out, put its encoder under torch.no_grad() where the loss "
            "detaches them, or pass allow_unused=True"
        )


def _check_collected(gradients: Gradients) -> None:
    if all(grad is None for grad in gradients):
        raise RuntimeError(
            "encoders: expected parameters that get gradients, got none; whole_gradients does not "
            "serve modules that train others in the place of their parameters"
        )


class _Embeddings(torch.autograd.Function):
    """One node for all towers: it has the gradients of all embeddings at once."""

    @staticmethod
    def forward(ctx: Any, pending: Pending, embeddings: list[Tensor], *sources: Tensor):
        ctx.pending = pending
        ctx.set_materialize_grads(False)
        return tuple(embeddings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):
        return None, None, None, *ctx.pending.backward(grads)


def _sum(before: Tensor | None, grad: Tensor) -> Tensor:
    return grad if before is None else before + grad
