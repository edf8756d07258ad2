"""The losses whose inputs are their own, each beside the form people write and the class of another
library that they call instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.losses import libraries
from benchmarks.losses.libraries import installed
from benchmarks.report import table
from catalogue.family import FAMILY

SIZES = tuple((rows, 128) for rows in (16, 64, 256, 1024, 2048))

EAGER = "eager"

Step = Callable[[], Any]


class FamilySize(NamedTuple):
    """A loss on so many rows of embeddings of a width."""

    loss: str
    rows: int
    width: int
    rival: str = EAGER  # or the package of another library

    def __str__(self) -> str:
        return f"{self.loss}-{self.rows}x{self.width}-{self.rival}"


def family_sizes(names: Iterable[str] = FAMILY, quick: bool = False) -> list[FamilySize]:
    sizes = SIZES[1:4:2] if quick else SIZES
    pairs = [(name, rival) for name in names for rival in (EAGER, installed(name)) if rival]
    return [FamilySize(name, *size, rival) for name, rival in pairs for size in sizes]


def contestants(size: FamilySize) -> tuple[Step, Step]:
    """Ours and the rival's: forward and backward of each."""
    case = FAMILY[size.loss]
    torch.manual_seed(0)
    arguments = case.arguments("plain", size.rows, size.width)
    leaves = [x.requires_grad_() for x in arguments.values() if _is_floating(x)]

    def step(form: Callable[..., Tensor]) -> Step:
        taken = {k: x for k, x in arguments.items() if k in signature(form).parameters}
        return lambda: torch.autograd.grad(form(**taken).sum(), leaves, materialize_grads=True)

    if size.rival != EAGER:
        return step(case.ours), libraries.contestant(size.loss, arguments)
    return step(case.ours), step(case.eager or case.textbook)


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def family_tables(entries: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Our time over eager PyTorch's and over other libraries', each with its title."""
    ratios = {FamilySize(*(e[f] for f in FamilySize._fields)): e["ratio"] for e in entries}
    eager = {size: ratio for size, ratio in ratios.items() if size.rival == EAGER}
    others = {size: ratio for size, ratio in ratios.items() if size.rival != EAGER}
    return [
        ("Other losses, time over that of eager PyTorch; rows x D", _table(eager, False)),
        ("Other losses, time over that of another library's class; rows x D", _table(others, True)),
    ]


def _table(ratios: dict[FamilySize, float], named: bool) -> str:
    """A row per loss and a column per size; slower is bold. ``named``: with whose class it is."""
    sizes = sorted({(size.width, size.rows) for size in ratios})

    def text(loss: str, rival: str, width: int, rows: int) -> str:
        ratio = ratios.get(FamilySize(loss, rows, width, rival))
        return "" if ratio is None else f"**{ratio:.2f}**" if ratio > 1 else f"{ratio:.2f}"

    lines = []
    for loss, rival in dict.fromkeys((size.loss, size.rival) for size in ratios):
        who = [rival.replace("_", "-")] if named else []
        lines.append([f"`{loss}`", *who, *(text(loss, rival, *size) for size in sizes)])
    header = ["loss", *(["against"] if named else [])]
    header += [f"{rows} x {width}" for width, rows in sizes]
    return table(header, lines) if lines else ""
