"""Encoders and their copies: what a wrapper holds, and which tensor of one belongs to which."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


class Pair(NamedTuple):
    """A tensor of the copy, and that of the encoder it was copied from."""

    name: str
    own: Tensor
    followed: Tensor


def unwrapped(module: nn.Module) -> nn.Module:
    """Without DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            inner = module.module
        else:
            inner = module._modules.get("_orig_mod")
        if inner is None:
            return module
        module = inner


def copied(encoder: nn.Module) -> nn.Module:
    """A deep copy without wrappers, also of modules inside."""
    memo: dict[int, nn.Module] = {}
    for module in reversed(list(encoder.modules())):  # what is inside first
        if unwrapped(module) is not module:
            memo[id(module)] = copy.deepcopy(unwrapped(module), memo)
    return copy.deepcopy(unwrapped(encoder), memo)


def pairs_of_parameters(own: nn.Module, followed: nn.Module) -> list[Pair]:
    return _pairs("parameters", own, followed)


def pairs_of_buffers(own: nn.Module, followed: nn.Module) -> list[Pair]:
    return _pairs("buffers", own, followed)


def _pairs(kind: str, own: nn.Module, followed: nn.Module) -> list[Pair]:
    """Raises ValueError where they are no longer alike."""
    mine, theirs = (dict(_tensors(module, f"_{kind}")) for module in (own, followed))
    if mine.keys() != theirs.keys():
        changes = [f"{name!r} added" for name in theirs if name not in mine]
        changes += [f"{name!r} removed" for name in mine if name not in theirs]
        raise ValueError(
            f"encoder: expected the {kind} it had when it was copied, got {', '.join(changes)}"
        )
    pairs = [Pair(name, x, theirs[name]) for name, x in mine.items()]
    for name, x, of in pairs:
        if x.shape != of.shape or x.dtype != of.dtype or x.device != of.device:
            raise ValueError(
                f"encoder: expected {name!r} as its copy, {_described(x)}, got {_described(of)}"
            )
    return pairs


def _tensors(module: nn.Module, kind: str) -> Iterator[tuple[str, Tensor]]:
    """By name, as if nothing were wrapped; what stands in several places once."""
    known: set[int] = set()
    for prefix, part in _parts(unwrapped(module), "", set()):
        for name, x in vars(part)[kind].items():
            if x is not None and id(x) not in known:
                known.add(id(x))
                yield prefix + name, x


def _parts(module: nn.Module, prefix: str, known: set[nn.Module]):
    if module in known:
        return
    known.add(module)
    yield prefix, module
    for name, part in module._modules.items():
        if part is not None:
            yield from _parts(unwrapped(part), f"{prefix}{name}.", known)


def _described(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)} on {x.device}"
