"""What makes two forward passes the same: random numbers, buffers, autocast, and what is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cl_kernels.grad_cache.wrappers import ddp_parts

_AUTOCAST_DEVICES = "cpu", "cuda"


class RandomStates:
    """States of torch's global generators: the CPU's and, once CUDA is in use, all its devices'.

    They lie in one block: small ones, each made after a chunk's activations were freed, would keep
    the allocator from using that memory as a whole again.
    """

    def __init__(self, count: int) -> None:
        self._with_cuda = torch.cuda.is_initialized()
        self._states = torch.cat(self._now()).repeat(count, 1)

    def save(self, number: int) -> None:
        self._states[number] = torch.cat(self._now())

    def restore(self, number: int) -> None:
        sizes = [len(state) for state in self._now()]
        cpu, *cuda = (x.clone() for x in self._states[number].split(sizes))  # must own its memory
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)

    def _now(self) -> list[torch.Tensor]:
        cuda = torch.cuda.get_rng_state_all() if self._with_cuda else []
        return [torch.get_rng_state(), *cuda]


class ModuleState:
    """What a forward pass in training changes: the buffers of BatchNorm, spectral norm and others.

    DDP's word on whether the next forward pass first broadcasts the buffers belongs to it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [
            (part, name, buffer, buffer.clone())
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]
        self._broadcasts = [(ddp, ddp.require_forward_param_sync) for ddp in ddp_parts(module)]

    def restore(self) -> None:
        for part, name, buffer, value in self._buffers:
            # Not a change to graphs that keep the buffer: all come back to what they kept.
            buffer.data.copy_(value)
            setattr(part, name, buffer)  # the name may be bound to another by now
        for ddp, broadcast in self._broadcasts:
            ddp.require_forward_param_sync = broadcast


class Autocast:
    """The autocast that was on when this was made, for later and for other threads."""

    def __init__(self) -> None:
        self._states = {device: _autocast(device) for device in _AUTOCAST_DEVICES}

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            for device, state in self._states.items():
                if state != _autocast(device):
                    stack.enter_context(torch.autocast(device, *state))
            yield


def _autocast(device: str) -> tuple[torch.dtype | None, bool, bool | None]:
    """The arguments of ``torch.autocast``, those that matter."""
    if not torch.is_autocast_enabled(device):
        return None, False, None
    return torch.get_autocast_dtype(device), True, torch.is_autocast_cache_enabled()


@contextmanager
def autocast_disabled() -> Iterator[None]:
    """For backward passes, which take the types of their forward pass."""
    with ExitStack() as stack:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


class Unchanged:
    """What a second encoding reads, with the versions that the first has read.

    Args:
        read: Tensors. Of parameters an optimizer's steps are noted too: fused ones leave no trace
            in versions.
    """

    def __init__(self, read: Sequence[Tensor] = ()) -> None:
        # Tensors of inference mode, which cannot be trained, have no version.
        self._read = [(x, x._version) for x in read if not x.is_inference()]
        stepped = self._stepped = []
        known = {id(x) for x in read if x.requires_grad}

        def note(optimizer: Optimizer, *_: Any) -> None:
            held = (p for group in optimizer.param_groups for p in group["params"])
            if any(p.grad is not None and id(p) in known for p in held):
                stepped.append(type(optimizer).__name__)

        self._noting = register_optimizer_step_pre_hook(note) if known else None

    def check(self, describe: Callable[[Tensor], str]) -> None:
        for name in self._stepped:
            raise RuntimeError(
                f"encoders: expected the parameters that the loss was computed with, got a step of "
                f"{name} since; backward() encodes again, so it must come before optimizer.step()"
            )
        for x, version in self._read:
            if x._version != version:
                raise RuntimeError(
                    f"{describe(x)}: expected as it was when the loss was computed, got it changed "
                    "in place since; backward() encodes again, so it must come before that"
                )

    def __del__(self) -> None:
        if self._noting is not None:
            self._noting.remove()


def trained_leaves(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that a backward pass from these tensors would give gradients to."""
    nodes = [x.grad_fn for x in outputs if x.grad_fn is not None]
    seen, leaves = set(nodes), []
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.append(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return leaves
