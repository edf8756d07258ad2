"""A loss of one batch that several processes have parts of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from cl_kernels._scopes import Scopes
from cl_kernels._spread import spreading
from cl_kernels._tracing import called_while_tracing
from cl_kernels.losses.batch import parts
from cl_kernels.losses.common import check_choice
from cl_kernels.losses.gathered import Gathered, described_all
from cl_kernels.losses.parted import PartedBatch
from cl_kernels.losses.sharding import SHARDINGS, Sharding
from cl_kernels.ranks.agreement import Disagreement, agree, together
from cl_kernels.ranks.gathering import OfAll, SumOfAll
from cl_kernels.ranks.group import Group, OthersGone, Ranks, without_compiling, world_size
from cl_kernels.ranks.round import counts_of_all, tell_those_in_a_ring
from cl_kernels.statistics.divided import Divided
from cl_kernels.statistics.ring import Ring
from cl_kernels.statistics.shared_queries import OfSharedQueries

Gather = Literal["all", "ring"]

_warned: list[bool] = []
_asked: Scopes[bool] = Scopes()  # whether somebody said how ranks share a loss


def over_several(gather: Gather | None, group: Group | None) -> bool:
    """Whether a loss is that of several processes' batches. Warns once where there are several and
    nobody said."""
    if gather is None and group is None:
        if not _warned and world_size() > 1 and not _asked.innermost():
            _warn()
        return False
    check_choice("gather", "all" if gather is None else gather, ("all", "ring"))
    if gather is None:
        raise ValueError('gather: expected "all" or "ring" with a group, got None')
    return group is not None or world_size() > 1


@called_while_tracing
def _warn() -> None:
    _warned.append(True)
    warnings.warn(
        f'{world_size()} processes, and a loss of this one\'s batch alone: pass gather="all" for '
        "that of all their batches",
        stacklevel=4,
    )


@without_compiling
def over_ranks(loss: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
    """The loss of all ranks' batches, on every rank; its gradients are such that their mean over
    the ranks, which DDP takes, is the gradient of the whole.

    Args:
        loss: One of the losses.
        arguments: All that it takes, by name.
    """
    given = dict(arguments)
    group, gather = given.pop("group"), given.pop("gather")
    ranks, name = Ranks(group), loss.__name__
    sharding = SHARDINGS[name]
    with _asked.entered(True):
        if ranks.size == 1:
            return loss(**given)
        if sharding.apart(given):
            return _of_each(loss, sharding, given, ranks, gather)
        if gather == "all":
            return _of_all(loss, sharding, given, ranks)
        return _in_a_ring(loss, sharding, given, ranks)


def _of_all(loss, sharding: Sharding, given: Mapping[str, Any], ranks: Ranks) -> Tensor:
    """By every rank's embeddings on each; of the statistics each rank visits some tiles."""
    gathered = Gathered(loss.__name__, sharding, given, ranks)

    def divided(backend: str, operation: str) -> str:
        return backend if operation == "topk" else Divided.of(backend, ranks)

    with spreading.entered(divided), gathered.precision():
        try:
            found = loss(**gathered.arguments)
        except (TypeError, ValueError) as error:  # on every rank: all have the same
            error.args = (f"{error} ({gathered.counted()})",)
            raise
    if given.get("reduction") == "none":
        return gathered.own_rows(found)
    return OfAll.apply(found, ranks)  # type: ignore[return-value]


def _of_each(loss, sharding: Sharding, given: dict[str, Any], ranks: Ranks, gather: str) -> Tensor:
    """Of rows that need no others: each rank's by themselves."""
    entries, device = described_all(sharding, given, gather)
    agree(ranks, loss.__name__, entries, device)
    reduction = given.get("reduction", "mean")
    alone = given | {"reduction": "none"}  # weighted already
    losses = together(ranks, loss.__name__, lambda: loss(**alone), device)
    if reduction == "none":
        return losses
    total = SumOfAll.apply(losses.sum(), ranks)
    if reduction == "sum":
        return total  # type: ignore[return-value]
    weights = given.get("weights")
    count = losses.new_tensor(losses.numel()) if weights is None else weights.to(losses).sum()
    count = ranks.sum(count.detach().clone())
    return total / torch.where(count == 0, 1, count)


def _in_a_ring(loss, sharding: Sharding, given: dict[str, Any], ranks: Ranks) -> Tensor:
    """Each rank's rows with those that come round."""
    entries, device = described_all(sharding, given, "ring")
    agree(ranks, loss.__name__, entries, device)
    spread = OfSharedQueries if sharding.shared_queries else Ring

    def chooser(backend: str, operation: str) -> str:
        return backend if operation == "topk" else spread.of(backend, ranks, sharding.further_cut)

    try:
        with spreading.entered(chooser), parts.entered(PartedBatch(ranks, device)):
            found = loss(**given)
    except (Disagreement, OthersGone):
        raise
    except Exception:  # while others wait for its rows, or for its part of the total
        tell_those_in_a_ring(ranks, device)
        raise
    counts_of_all(ranks, "a loss", 0, device)
    if given.get("reduction") == "none":
        return found
    return SumOfAll.apply(found / ranks.size if sharding.alike else found, ranks)  # type: ignore[return-value]
