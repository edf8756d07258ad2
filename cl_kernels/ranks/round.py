"""Rows that go round: every rank sees those of all, and holds those of one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels.ranks.agreement import FAILED, Disagreement, Entry, agree
from cl_kernels.ranks.group import Ranks

_NAME = "gather"
_RANK_SHIFT = 40  # a rank's rows are fewer than 2^40

Tensors = Sequence[Tensor]


def positions(owner: int, rows: Tensor) -> Tensor:
    """Ids of a rank's rows, which no row of another has."""
    return rows + (owner << _RANK_SHIFT)


def rows_of(owner: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Which of these are a rank's, and which rows of it they are; the others: 0."""
    theirs = (positions >> _RANK_SHIFT) == owner
    return theirs, torch.where(theirs, positions - (owner << _RANK_SHIFT), 0)


class Visitors(NamedTuple):
    """Rows that are at a rank for now.

    Args:
        owner: Whose they are.
        rows: Tensors of so many rows.
    """

    owner: int
    rows: Tensors


def counts_of_all(ranks: Ranks, what: str, rows: int, device: torch.device) -> list[int]:
    """How many rows each rank has, all of which are about to do the same.

    Raises:
        Disagreement: On every rank, if one is about to do something else, or has failed.
    """
    (counts,) = agree(ranks, _NAME, [Entry("keys", what, rows)], device)
    return counts


def tell_those_in_a_ring(ranks: Ranks, device: torch.device) -> None:
    """That this rank has an error, and its rows will not come: they raise as well."""
    with suppress(Disagreement):
        agree(ranks, _NAME, [Entry("keys", "an error", FAILED)], device)


def go_round(
    ranks: Ranks,
    rows: Tensors,
    counts: Sequence[int],
    visit: Callable[[Visitors], list[Tensor]],
    unite: Callable[[Tensors, Tensors], list[Tensor]] | None = None,
) -> list[Tensor]:
    """Each rank passes on the rows that it has while it visits them.

    Args:
        ranks: The processes.
        rows: This rank's.
        counts: How many each rank has.
        visit: What belongs to the visitors is returned, tensors of as many rows. They come home
            with it.
        unite: Makes one of what two ranks found for the same rows; default: adds.

    Returns:
        What all ranks found for this rank's rows.
    """
    unite = unite or _add
    here, mine, wait = Visitors(ranks.rank, rows), [], None
    for step in range(ranks.size):
        arriving, following = None, (ranks.rank - step - 1) % ranks.size
        if step + 1 < ranks.size:
            arriving = ranks.pass_on(here.rows, counts[following])
        found = visit(here)
        if step == 0:
            mine = found  # what is of these rows comes home to it
        elif found:
            found = found if wait is None else unite(wait(), found)
            wait = ranks.pass_on(found, counts[following])
        if arriving is not None:
            here = Visitors(following, arriving())
    return mine if wait is None else unite(mine, wait())


def _add(some: Tensors, more: Tensors) -> list[Tensor]:
    return [a + b for a, b in zip(some, more, strict=True)]
