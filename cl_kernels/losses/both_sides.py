"""Pairs whose both sides have negatives among either: the rows of one symmetric matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cl_kernels.losses.common import union
from cl_kernels.losses.contrast import Recipe, contrast
from cl_kernels.losses.operands import halves
from cl_kernels.pairs import PairFilter


def over_both_sides(
    first: Tensor,
    second: Tensor,
    scale: float | Tensor,
    where: tuple[PairFilter, ...],
    *,
    normalize: bool,
    logit_bound: float | None,
    backend: str | None,
    vectors: Mapping[str, Tensor | None] | None = None,
) -> list[Tensor]:
    """Log-sum-exps of row i of ``first``, and of row i of ``second``, over the rows of both but i,
    less the logit of their pair: [B] each. Filters and vectors are of the 2B rows."""
    recipe = Recipe("self_logsumexp", "difference", normalize)
    lse = contrast(
        recipe,
        first,
        second,
        scale,
        where,
        logit_bound=logit_bound,
        reduction="none",
        backend=backend,
        vectors=vectors,
    )
    return list(halves(lse))


def one_way(
    count: int, device: torch.device, *, first: bool = True, second: bool = True
) -> PairFilter:
    """On the rows of both: drops the pairs of a query of the second and a key of the first, and
    those within the first or within the second unless they are wanted."""
    side = (torch.arange(2 * count, device=device) >= count).long()
    return PairFilter(side * int(first), side * int(second) + int(first), "different")


def of_both(x: Tensor) -> Tensor:
    """What is said of each pair, for the rows of both."""
    return torch.cat((x, x))  # repeat takes three times as long


def joint(sets: Sequence[Tensor]) -> Tensor:
    """Each pair's cross-entropy against all sets of negatives, whose log-sum-exps are less the
    logit of the pair."""
    return F.softplus(union(sets), threshold=40)
