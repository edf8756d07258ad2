"""What tests, benchmarks and documents know of a loss of the wider family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

Arguments = dict[str, Any]


class FamilyCase(NamedTuple):
    """A loss, the forms it is held against, and how to call them.

    All floating tensors among the arguments are trained.

    Args:
        ours: The function; its name is the loss's.
        module: The same as an ``nn.Module``, None of what has none.
        textbook: The N x N form with every option, for any floating dtype: the truth in float64.
        inputs: Named arguments for a batch of so many rows of a width, in float32: two different
            calls of it from one seed are the same.
        options: Further arguments by name, made for batches of so many rows and a width.
        title: In the README's table.
        paper: Authors, title, year; equation.
        eager: As people write it, with the plain inputs: what ours is timed against. Default: the
            textbook form.
        reductions: What ``reduction`` may be; empty where the function has none.
        rows_matrix: Whether people's form holds a matrix of rows x rows.
        softer: How many times the accuracy rule may be missed, and the comment beside it why.
    """

    ours: Callable[..., Tensor]
    module: type[nn.Module] | None
    textbook: Callable[..., Tensor]
    inputs: Callable[[int, int], Arguments]
    options: dict[str, Callable[[int, int], Arguments]]
    title: str
    paper: str
    eager: Callable[..., Tensor] | None = None
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    rows_matrix: bool = True
    softer: float = 1

    @property
    def name(self) -> str:
        return self.ours.__name__

    def arguments(self, option: str, rows: int, width: int) -> Arguments:
        return self.inputs(rows, width) | self.options[option](rows, width)


def plain(rows: int, width: int) -> Arguments:
    return {}
