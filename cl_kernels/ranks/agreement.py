"""Whether all ranks make the same call: told before any of them would wait for another."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from cl_kernels.pairs import PairFilter
from cl_kernels.ranks.group import Ranks
from cl_kernels.reading import readable

Made = TypeVar("Made")

FAILED = -1  # in the place of rows: this rank has an error of its own
_LOOKED_AT = 1 << 20
_MOST = 1024  # entries of a call: its arguments, and the tensors in them


class Disagreement(ValueError):
    """Raised by all ranks alike."""


class Entry(NamedTuple):
    """What a rank says of an argument, or of a tensor in it.

    Args:
        name: Of the argument.
        said: What has to be the same on every rank.
        rows: How many rows this rank gives; 0 of what is not cut by rows.
        is_rows: Whether it is a tensor whose rows are gathered.
    """

    name: str
    said: str
    rows: int = 0
    is_rows: bool = False


def described(value: Any, *, cut: bool = False) -> str:
    """What has to be the same of a value on every rank; ``cut``: neither the number of its rows
    nor what they hold."""
    if isinstance(value, Tensor):
        shape = ["rows", *value.shape[1:]] if cut else list(value.shape)
        if value.layout != torch.strided:
            return f"a {value.layout} tensor"
        trained = " that requires grad" if value.requires_grad else ""
        shown = ", ".join(map(str, shape))
        held = "" if cut or not readable(value) else f" of checksum {_checksum(value)}"
        return f"a {value.dtype} tensor [{shown}] on {value.device.type}{trained}{held}"
    if isinstance(value, PairFilter):
        return f"a filter that keeps {value.keep} ids"
    if isinstance(value, (tuple, list)):
        if cut and not (value and all(isinstance(x, (Tensor, PairFilter)) for x in value)):
            return f"a {type(value).__name__}"  # a row's positives are its own
        return f"({', '.join(described(x, cut=cut) for x in value)})"
    if isinstance(value, Real) and not isinstance(value, bool):
        return repr(float(value))
    if value is None or isinstance(value, (bool, str)):
        return repr(value)
    return f"a {type(value).__name__}"


def _checksum(x: Tensor) -> int:
    """Of the bits of the first numbers, by their places."""
    some = x.detach().reshape(-1)[:_LOOKED_AT].contiguous()
    of_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(x.element_size(), torch.int64)
    bits = some.view(of_size).long()
    place = torch.arange(1, len(bits) + 1, device=x.device)
    return int((bits * place).sum())  # in whole numbers, that overflow alike everywhere


def agree(
    ranks: Ranks, name: str, entries: Sequence[Entry], device: torch.device
) -> list[list[int]]:
    """The rows of each entry on each rank.

    Args:
        ranks: The processes.
        name: Of what they call.
        entries: This rank's.
        device: Where the group's tensors live.

    Raises:
        Disagreement: On every rank, if they differ; the message names an argument.
    """
    if len(entries) >= _MOST:
        raise ValueError(
            f"{name}: expected fewer than {_MOST} tensors in a call, got {len(entries)}"
        )
    entries = [Entry(name, name), *entries]
    said = [[zlib.crc32(f"{e.name}: {e.said}".encode()), e.rows] for e in entries]
    own = torch.zeros(_MOST, 2, dtype=torch.int64)
    own[: len(said)] = torch.tensor(said)
    gathered = ranks.all(own.to(device)).cpu()
    failed = (gathered[:, :, 1] == FAILED).any(1)
    of_all = gathered[:, : len(entries) + 1].tolist()
    if failed.any():
        shown = ", ".join(str(rank) for rank in failed.nonzero().flatten().tolist())
        raise Disagreement(f"{name}: an error on rank {shown}, whose own message says which")
    for place, entry in enumerate(entries):
        sums = [of_rank[place][0] for of_rank in of_all]
        if len(set(sums)) > 1:
            raise Disagreement(_difference(entry, sums, ranks))
    extra = [of_rank[len(entries)][0] for of_rank in of_all]
    if any(extra):
        raise Disagreement(f"{name}: expected the same arguments on every rank, got others")
    return [[of_rank[place][1] for of_rank in of_all] for place in range(1, len(entries))]


def together(ranks: Ranks, name: str, make: Callable[[], Made], device: torch.device) -> Made:
    """What ``make()`` returns. If it raises on one rank, that error is raised there, and another
    on every other rank, which would wait for it."""
    made, wrong = None, None
    try:
        made = make()
    except Disagreement:
        raise
    except Exception as error:
        wrong = error
    tell(ranks, name, wrong, device)
    return cast(Made, made)


def tell(ranks: Ranks, name: str, wrong: Exception | None, device: torch.device) -> None:
    """Raises this rank's error, and another where a rank has one."""
    try:
        agree(ranks, name, [Entry(name, "a call", 0 if wrong is None else FAILED)], device)
    except Disagreement as error:
        raise (wrong or error) from None
    if wrong is not None:
        raise wrong


def modes(gather: str) -> list[Entry]:
    """What decides about how a loss is called over ranks, and is no argument of its."""
    autocast = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    dtypes = [f"{d}: {torch.get_autocast_dtype(d)}" for d in autocast]
    return [
        Entry("gather", gather),
        Entry("autocast", ", ".join(dtypes)),
        Entry("torch.is_grad_enabled()", repr(torch.is_grad_enabled())),
    ]


def _difference(entry: Entry, sums: Sequence[int], ranks: Ranks) -> str:
    others = [rank for rank, x in enumerate(sums) if x != sums[ranks.rank]]
    shown = ", ".join(map(str, others))
    return (
        f"{entry.name}: expected the same on every rank, got {entry.said} on rank {ranks.rank} and "
        f"something else on rank {shown}"
    )
