"""What makes two forward passes the same, and two backward passes one reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


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
        with torch.no_grad():
            for part, name, buffer, value in self._buffers:
                setattr(part, name, buffer.copy_(value))  # the name may be bound to another by now
        for ddp, broadcast in self._broadcasts:
            ddp.require_forward_param_sync = broadcast


def module_of(function: Callable[..., Any]) -> nn.Module | None:
    """The module that a function is, or is a method of."""
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None


def ddp_parts(module: nn.Module | None) -> list[DistributedDataParallel]:
    if module is None:
        return []
    return [part for part in module.modules() if isinstance(part, DistributedDataParallel)]


@contextmanager
def no_sync(modules: list[DistributedDataParallel]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.no_sync())
        yield


@contextmanager
def autocast_disabled() -> Iterator[None]:
    """For backward passes, which take the types of their forward pass."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
