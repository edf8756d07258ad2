"""What the losses' modules share: settings of construction, and what a call is handed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_kernels._numbers import check_flag
from cl_kernels.checks import as_scalar
from cl_kernels.losses.common import check_reduction
from cl_kernels.losses.hardest import check_hardest


def _check_temperature(value: Any) -> None:
    as_scalar("temperature", value, inverted=True)


def _check_in_batch(value: Any) -> None:
    if value is not None:
        check_flag("in_batch_negatives", value)


# What can be told of a setting before there are embeddings: the rest is told by the first call.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "temperature": _check_temperature,
    "normalize": lambda value: check_flag("normalize", value),
    "reduction": check_reduction,
    "in_batch_negatives": _check_in_batch,
    "hardest": check_hardest,
}


class LossModule(nn.Module):
    """A loss with its settings; what it is called with goes to the function.

    A subclass names the function and, in order, the inputs that ``forward`` takes by position;
    anything else the function takes and ``options`` does not name is a setting, with the
    function's default. A setting that is an ``nn.Parameter`` is learned, any other tensor is a
    buffer.
    """

    function: ClassVar[Callable[..., Any]]
    inputs: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]] = ()  # of a call, by name
    _accepted: ClassVar[Signature] = Signature()  # settings
    __signature__: ClassVar[Signature]  # all that the constructor takes

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not hasattr(cls, "function"):  # a kind of losses, none itself
            return
        of_call = cls.inputs + cls.options
        parameters = signature(cls.function).parameters.values()
        settings = [_as_setting(p) for p in parameters if p.name not in of_call]
        settings.sort(key=lambda p: p.kind)  # what may be given by position comes first
        cls._accepted = cls.__signature__ = Signature(settings)

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__()
        for name in settings:
            if name in (*self.inputs, *self.options):
                raise TypeError(f"{name}: expected in a call of {type(self).__name__}, not here")
        try:
            bound = self._accepted.bind(*arguments, **settings)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        self._settings = tuple(bound.arguments)
        for name, value in bound.arguments.items():
            _CHECKS.get(name, lambda _: None)(value)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        settings = {name: getattr(self, name) for name in self._settings}
        return type(self).function(**self._named(inputs, options), **settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> LossModule:
        """A copy that shares the group of processes, which cannot be copied."""
        if (group := getattr(self, "group", None)) is not None:
            memo[id(group)] = group
        reduced: Any = self.__reduce_ex__(4)
        make, arguments, state = reduced[:3]
        memo[id(self)] = copied = make(*arguments)
        copied.__setstate__(copy.deepcopy(state, memo))
        return copied

    def _named(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """All that a call was given, by name."""
        if len(inputs) > len(self.inputs):
            raise TypeError(
                f"{type(self).__name__}: expected at most {len(self.inputs)} inputs by position "
                f"({', '.join(self.inputs)}), got {len(inputs)}"
            )
        named = dict(zip(self.inputs, inputs, strict=False))
        for name in named:
            if name in options:
                raise TypeError(f"{type(self).__name__}: expected {name} once, got it twice")
        for name in options:
            if name in self._settings:
                raise TypeError(
                    f"{name}: expected when {type(self).__name__} is made, got it in a call"
                )
        return named | options

    def extra_repr(self) -> str:
        """Settings as they are passed; None, which leaves a choice to the call, is left out."""
        values = {name: getattr(self, name) for name in self._settings}
        return ", ".join(f"{name}={_shown(x)}" for name, x in values.items() if x is not None)


def _as_setting(parameter: Parameter) -> Parameter:
    by_position = parameter.name == "temperature"
    kind = Parameter.POSITIONAL_OR_KEYWORD if by_position else Parameter.KEYWORD_ONLY
    return parameter.replace(kind=kind)


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    unread = f"<tensor on {value.device}>"
    if torch.compiler.is_compiling():
        return unread
    try:
        return repr(value.item())
    except Exception:  # no value on meta nor under FakeTensorMode; a repr is for looking into that
        return unread
