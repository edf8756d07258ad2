"""An encoder that follows another one slowly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cl_kernels._numbers import check_integer
from cl_kernels.losses.common import check_choice
from cl_kernels.memory.checks import check_momentum
from cl_kernels.memory.encoders import (
    Pair,
    copied,
    pairs_of_buffers,
    pairs_of_parameters,
    unwrapped,
)
from cl_kernels.memory.stored import Stored
from cl_kernels.ranks.group import without_compiling

Momentum = float | Callable[[int], float]

_AVERAGED = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def cosine_momentum(base: float, steps: int) -> Callable[[int], float]:
    """``1 - (1 - base) * (cos(pi * step / steps) + 1) / 2``: from ``base`` at step 0 to 1 at step
    ``steps``, and 1 from then on. It can be pickled.

    Grill et al., "Bootstrap Your Own Latent" (2020), implementation details; Chen, Xie and He, "An
    Empirical Study of Training Self-Supervised Vision Transformers" (2021), MoCo v3.

    Args:
        base: The momentum of the first step, from 0 to 1.
        steps: How many steps it takes, at least 1.

    Returns:
        The momentum at a step, for ``MomentumEncoder``.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        momentum_encoder = MomentumEncoder(encoder, cosine_momentum(0.996, total_steps))
    """
    check_momentum(base, "base")
    check_integer("steps", steps, 1)
    return partial(_cosine, float(base), int(steps))


def _cosine(base: float, steps: int, step: int) -> float:
    return 1 - (1 - base) * (math.cos(math.pi * min(step / steps, 1)) + 1) / 2


class MomentumEncoder(Stored):
    """A copy of an encoder that follows it: ``momentum * own + (1 - momentum) * the encoder's``.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning" (2020),
    equation 2. It is a deep copy, of what DistributedDataParallel, DataParallel or torch.compile
    have wrapped; parameters that are one stay one. Its forward pass makes no graph, and its
    parameters require no gradient. It is in train or eval mode as the encoder was when it was
    copied, then as ``train()`` and ``eval()`` of the module that holds it say: in train mode
    BatchNorm uses the batch's statistics, as MoCo's does.

    ``torch.optim.swa_utils.AveragedModel``, whose averaging function this uses, would not do: its
    first update is a copy, it averages integer buffers or leaves all buffers alone, it passes over
    parameters that came later, and it reads a number from the device at every update.

    The encoder itself is no submodule of it. Its ``state_dict`` has the copy (``module.``) and the
    number of updates.

    Args:
        encoder: What is followed. Its trained parameters must not be float16 or bfloat16: at
            momentum 0.999 nearly all that such a number should move by is rounded away. Keep the
            encoder in float32, under autocast; frozen parameters may have any dtype.
        momentum: A number from 0 to 1, or what gives one for the number of updates before:
            ``cosine_momentum``.
        buffers: ``"copy"`` them from the encoder, or ``"average"`` those of floating-point numbers
            and copy the others.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        momentum_encoder = MomentumEncoder(encoder, 0.999)
        for images_q, images_k in loader:
            loss = info_nce(encoder(images_q), momentum_encoder(images_k))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            momentum_encoder.update()
    """

    def __init__(
        self,
        encoder: nn.Module,
        momentum: Momentum = 0.999,
        *,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder: expected a module, got {type(encoder).__name__}")
        if any(is_lazy(x) for x in (*encoder.parameters(), *encoder.buffers())):
            raise ValueError("encoder: expected one that has seen a batch, got a lazy one")
        if not callable(momentum):
            check_momentum(momentum)
        check_choice("buffers", buffers, ("copy", "average"))
        self.momentum, self._of_buffers, self.step = momentum, buffers, 0
        self._followed = (unwrapped(encoder),)  # in a tuple it is no submodule
        _divided(*self._pairs_with(self._followed[0]), buffers)  # raises before copying
        self.module = copied(encoder).requires_grad_(False)
        self.training = self.module.training

    @torch.no_grad()
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """The copy's, without a graph."""
        return self.module(*inputs, **options)

    @without_compiling
    @torch.no_grad()
    def update(self) -> None:
        """Moves the copy one step; to be called after the optimizer's.

        Raises:
            TypeError, ValueError: The momentum is no number from 0 to 1, or a parameter or buffer
                of the encoder was added, removed, resized, cast or moved to another device. The
                copy is as it was.
        """
        momentum = self.momentum(self.step) if callable(self.momentum) else self.momentum
        check_momentum(momentum)
        averaged, taken = _divided(*self._pairs_with(self.module), self._of_buffers)
        if averaged:
            own, followed = zip(*averaged, strict=True)
            get_ema_multi_avg_fn(float(momentum))(list(own), list(followed), 0)
        if taken:
            own, followed = zip(*taken, strict=True)
            torch._foreach_copy_(own, followed)  # type: ignore[attr-defined]
        self.step += 1

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, buffers={self._of_buffers!r}, step={self.step}"

    def _pairs_with(self, own: nn.Module) -> tuple[list[Pair], list[Pair]]:
        followed = self._followed[0]
        return pairs_of_parameters(own, followed), pairs_of_buffers(own, followed)

    def _tensors(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.step, device="cpu")}

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        step = int(tensors["step"])
        if step < 0:
            raise ValueError(f"step: expected at least 0, got {step}")
        self.step = step


_Tensors = list[tuple[Tensor, Tensor]]


def _divided(parameters: list[Pair], buffers: list[Pair], of_buffers: str) -> tuple[_Tensors, ...]:
    """What is averaged, and what is taken over as it is."""
    averaged: _Tensors = []
    taken: _Tensors = []
    for name, own, followed in parameters:
        _check_precision(name, followed, followed.requires_grad)
        (averaged if own.dtype in _AVERAGED else taken).append((own, followed))
    for name, own, followed in buffers:
        by_average = of_buffers == "average" and followed.is_floating_point()
        _check_precision(name, followed, by_average)
        (averaged if by_average else taken).append((own, followed))
    return averaged, taken


def _check_precision(name: str, x: Tensor, averaged: bool) -> None:
    if averaged and x.dtype not in _AVERAGED:
        raise ValueError(
            f"encoder: expected {name!r} in float32, got {x.dtype}, which rounds away the small "
            "steps of an average: keep the encoder in float32 and call it under autocast"
        )
