"""The losses whose inputs are their own, each beside the form people write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.report import table
from catalogue.family import FAMILY

SIZES = tuple((rows, 128) for rows in (16, 64, 256, 1024, 2048))

Step = Callable[[], Any]


class FamilySize(NamedTuple):
    """A loss on so many rows of embeddings of a width."""

    loss: str
    rows: int
    width: int

    def __str__(self) -> str:
        return f"{self.loss}-{self.rows}x{self.width}"


def family_sizes(names: Iterable[str] = FAMILY, quick: bool = False) -> list[FamilySize]:
    sizes = SIZES[1:4:2] if quick else SIZES
    return [FamilySize(name, *size) for name in names for size in sizes]


def contestants(size: FamilySize) -> tuple[Step, Step]:
    """Ours and the eager form: forward and backward of each."""
    case = FAMILY[size.loss]
    torch.manual_seed(0)
    arguments = case.arguments("plain", size.rows, size.width)
    leaves = [x.requires_grad_() for x in arguments.values() if _is_floating(x)]

    def step(form: Callable[..., Tensor]) -> Step:
        taken = {k: x for k, x in arguments.items() if k in signature(form).parameters}
        return lambda: torch.autograd.grad(form(**taken).sum(), leaves, materialize_grads=True)

    return step(case.ours), step(case.eager or case.textbook)


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def family_table(entries: Iterable[dict[str, Any]]) -> str:
    """Our time over eager PyTorch's, a row per loss and a column per size; slower is bold."""
    ratios = {FamilySize(*(e[f] for f in FamilySize._fields)): e["ratio"] for e in entries}
    sizes = sorted({(size.width, size.rows) for size in ratios})

    def text(loss: str, width: int, rows: int) -> str:
        ratio = ratios.get(FamilySize(loss, rows, width))
        return "" if ratio is None else f"**{ratio:.2f}**" if ratio > 1 else f"{ratio:.2f}"

    losses = dict.fromkeys(size.loss for size in ratios)
    lines = [[f"`{loss}`", *(text(loss, *size) for size in sizes)] for loss in losses]
    return table(["loss", *(f"{rows} x {width}" for width, rows in sizes)], lines) if lines else ""
