"""What torch.compile does not trace: functions it calls, and functions it puts into its graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable)

_in_graph: list[Callable] = []


def called_while_tracing(function: Function) -> Function:
    """Has torch.compile call the function, not trace it, and take its result for a constant.

    It is ``torch.compiler.assume_constant_result``, which would import torch._dynamo, and Triton
    with it, for everybody who imports this package.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def in_graph(function: Function) -> Function:
    """Has torch.compile put calls of the function into its graph as they are.

    AOTAutograd then differentiates what it does as autograd would. Dynamo's own tracing of an
    ``autograd.Function`` refuses one tensor in two places (torch 2.13), or takes half of its
    gradient (2.12), and loses track of symbolic sizes. Arguments: tensors, numbers, names, dtypes
    and tuples of them; nothing global may decide what the function does.
    """
    _in_graph.append(function)

    @wraps(function)
    def call(*args):
        if torch.compiler.is_compiling():
            _allow_in_graph()
        return function(*args)

    return call  # type: ignore[return-value]


@called_while_tracing  # torch._dynamo is imported by then
def _allow_in_graph() -> None:
    while _in_graph:
        torch.compiler.allow_in_graph(_in_graph.pop())
