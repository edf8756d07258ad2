"""A list of tensors: an encoder's arguments, as for luyug's GradCache, or samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from torch import Tensor, nn


def as_arguments(name: str, encoder: Callable[..., Any], inputs: Any) -> Any:
    """A list of tensors of one length as a tuple of arguments, if the encoder needs several.

    Samples are one argument. So a list of several such tensors is samples for an encoder that
    takes only one, or fewer than there are, and arguments for one that cannot do with one.

    Args:
        name: Of the input.
        encoder: Its signature decides.
        inputs: Anything; all but such a list is handed back.

    Raises:
        ValueError: The encoder can be called both ways.
    """
    if not _may_be_arguments(inputs):
        return inputs
    least, most = _positional(encoder)
    if not least <= len(inputs) <= most:
        return inputs
    if least > 1:
        return tuple(inputs)
    raise ValueError(
        f"{name}: expected a tuple of arguments, or a list of samples in a tuple, (samples,), as "
        f"the encoder takes one or more arguments, got a list of {len(inputs)} tensors"
    )


def _may_be_arguments(inputs: Any) -> bool:
    if not isinstance(inputs, list) or len(inputs) < 2:
        return False
    if not all(isinstance(x, Tensor) and x.dim() > 0 for x in inputs):
        return False
    return len({len(x) for x in inputs}) == 1


def _positional(encoder: Callable[..., Any]) -> tuple[int, float]:
    """How many arguments it needs by position at least, and takes at most; (1, 1) if unknown."""
    try:
        parameters = signature(_called(encoder)).parameters.values()
    except (TypeError, ValueError):  # of a builtin function
        return 1, 1
    kinds = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
    named = [p for p in parameters if p.kind in kinds]
    least = sum(p.default is Parameter.empty for p in named)
    several = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
    return least, math.inf if several else len(named)


def _called(encoder: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind modules that hand on whatever they are called with."""
    while isinstance(encoder, nn.Module):
        inner = getattr(encoder, "_orig_mod", None)  # torch.compile's
        if isinstance(encoder, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = encoder.module
        if inner is None:
            return encoder.forward
        encoder = inner
    return encoder
