"""Modules inside and around encoders that reduce gradients, and who else waits for whole ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def module_of(function: Callable[..., Any]) -> nn.Module | None:
    """The module that a function is, is a method of, or is a ``partial`` of."""
    if isinstance(function, partial):
        parts = *function.args, *function.keywords.values(), function.func
        found = [module for module in map(module_of, parts) if module is not None]
        return nn.ModuleList(found) if len(found) > 1 else next(iter(found), None)
    owner = getattr(function, "__self__", function)
    return owner if isinstance(owner, nn.Module) else None


def parameters(modules: Iterable[nn.Module | None]) -> Iterator[Tensor]:
    for module in modules:
        if module is not None:
            yield from module.parameters()


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


def waiting_for_whole_gradients(trained: list[Tensor], asked: bool) -> list[Tensor]:
    """What a gradient must reach in one piece, as it does in an ordinary backward pass.

    Those are all parameters where a DistributedDataParallel is in its forward pass, which will
    reduce the first gradient that it sees (Lightning wraps a whole training step so), and those
    with hooks that take a gradient for the whole one, as an optimizer in the backward pass does.

    Args:
        trained: Parameters of the encoders.
        asked: Whether all of them are asked for.
    """
    outer = DistributedDataParallel._active_ddp_module
    if outer is not None:
        return list(dict.fromkeys([*(p for p in outer.parameters() if p.requires_grad), *trained]))
    hooked = any(p._post_accumulate_grad_hooks for p in trained)  # type: ignore[attr-defined]
    return trained if hooked or asked else []
