"""The rows that all ranks store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_kernels._numbers import check_flag
from cl_kernels.ranks.agreement import Entry, agree, described
from cl_kernels.ranks.group import Group, Ranks, world_size


def rows_of_all(
    name: str,
    own: Callable[[], Sequence[Tensor]],
    given: Mapping[str, Any],
    settings: Mapping[str, str],
    device: torch.device,
    group: Group | None,
    gather: bool,
) -> Sequence[Tensor]:
    """This rank's rows, or those of all ranks, in the order of the ranks.

    Args:
        name: Of what is called.
        own: Checks this rank's arguments and makes rows of them.
        given: These arguments: tensors with a row for each of what ``own`` makes, or None.
        settings: What else has to be the same on every rank, in words.
        device: Where the rows are.
        group: Of torch.distributed; None: all processes.
        gather: Whether rows are gathered.

    Raises:
        ValueError: On every rank, if they differ.
    """
    check_flag("gather", gather)
    if group is not None and not gather:
        raise ValueError("gather: expected True with a group, got False")
    if not gather or (group is None and world_size() == 1):
        return own()
    ranks = Ranks(group)
    if ranks.size == 1:
        return own()
    wrong, rows = None, ()
    try:
        rows = own()
    except Exception as error:  # the others are told: they would wait for this rank
        wrong = error
    entries = [Entry(of, said) for of, said in settings.items()]
    named = {str(wrong).partition(":")[0]} & given.keys()  # what its message begins with
    unread = set() if wrong is None else named or given.keys()
    entries += [_entry(of, x, of in unread) for of, x in given.items()]
    try:
        counts = agree(ranks, name, entries, device)[len(settings)]
    except ValueError as error:
        raise (wrong or error) from None
    if wrong is not None:
        raise wrong
    return [ranks.rows(x, counts) for x in rows] if any(counts) else rows


def _entry(name: str, x: Any, is_wrong: bool) -> Entry:
    if is_wrong:
        return Entry(name, "what cannot be read")
    if x is None:
        return Entry(name, "None")
    if not isinstance(x, Tensor) or x.dim() == 0:
        return Entry(name, described(x))
    return Entry(name, described(x.detach(), cut=True), x.shape[0])
