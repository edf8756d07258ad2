"""Modules whose tensors belong to each process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Stored(nn.Module, ABC):
    """A module with tensors that are in its ``state_dict`` and move with it, and are no buffers:
    DistributedDataParallel writes the first rank's buffers over all others' before every forward
    pass, and their shapes could not depend on what has come.
    """

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """What is kept, by name, in shapes that depend on the constructor's arguments only."""

    @abstractmethod
    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """From what ``_tensors`` gave; ValueError if it cannot be."""

    def _move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """To what ``fn`` makes of each tensor."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        super()._apply(fn, recurse)
        self._move(fn)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, x in self._tensors().items():
            destination[prefix + name] = x

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        own = self._tensors()
        found = {name: state_dict.pop(prefix + name) for name in own if prefix + name in state_dict}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing = [prefix + name for name in own if name not in found]
        if missing:
            missing_keys.extend(missing if strict else ())
            return
        wrong = [
            f"{prefix}{name}: expected {_described(x)}, got {_described(found[name])}"
            for name, x in own.items()
            if _described(found[name]) != _described(x)
        ]
        if not wrong:
            try:
                with torch.inference_mode(False), torch.no_grad():
                    self._restore(found)
            except ValueError as error:
                wrong.append(f"{prefix}{error}")
        error_msgs.extend(wrong)


def _described(x: Any) -> str:
    return f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
