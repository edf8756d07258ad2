"""Losses that learn a matrix of their own: a row for each class, or its proxy."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_kernels._numbers import check_integer
from cl_kernels.losses.module import LossModule

_OF_MATRIX = [
    Parameter("num_classes", Parameter.POSITIONAL_OR_KEYWORD, default=None),
    Parameter("dim", Parameter.POSITIONAL_OR_KEYWORD, default=None),
    Parameter("device", Parameter.KEYWORD_ONLY, default=None),
    Parameter("dtype", Parameter.KEYWORD_ONLY, default=None),
]


def _small_normal(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=0.01)


class LossWithWeight(LossModule):
    """A loss module that learns one of its function's inputs, a matrix [num_classes, dim].

    A subclass names that input, ``learned``, and what fills it at first, ``initialise``. Without
    ``num_classes`` and ``dim`` there is no such matrix, and the calls are handed one.
    """

    learned: ClassVar[str] = "weight"
    initialise: ClassVar[Callable[[Tensor], Any]] = _small_normal

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        every = [*_OF_MATRIX, *cls._accepted.parameters.values()]
        cls.__signature__ = Signature(sorted(every, key=lambda p: p.kind))

    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        *arguments: Any,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, **settings)
        self.num_classes, self.dim = num_classes, dim
        sizes: Any = num_classes, dim
        matrix = None
        if sizes != (None, None):
            for name, size in zip(("num_classes", "dim"), sizes, strict=True):
                if size is None:
                    raise ValueError(f"{name}: expected with the other of num_classes and dim")
                check_integer(name, size, 1)
            matrix = nn.Parameter(torch.empty(sizes, device=device, dtype=dtype))
        self.register_parameter(self.learned, matrix)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        matrix = getattr(self, self.learned)
        if matrix is not None:
            type(self).initialise(matrix)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        matrix, given = getattr(self, self.learned), self._named(inputs, options)
        if (matrix is None) == (self.learned not in given):
            own = "one in the call, as the loss was made without num_classes and dim"
            expected = own if matrix is None else "none"
            found = "none" if matrix is None else "one beside the loss's own"
            raise TypeError(f"{self.learned}: expected {expected}, got {found}")
        return super().forward(**given, **({} if matrix is None else {self.learned: matrix}))

    def extra_repr(self) -> str:
        sizes = () if self.num_classes is None else (str(self.num_classes), str(self.dim))
        return ", ".join(filter(None, (*sizes, super().extra_repr())))
