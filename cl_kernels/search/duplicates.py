"""Groups of rows that are alike, directly or by way of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_kernels._numbers import check_number
from cl_kernels.checks import check_embeddings, check_filters
from cl_kernels.pairs import PairFilter, Where

from .topk import as_tensor, topk

if TYPE_CHECKING:
    import numpy


def duplicate_groups(
    x: Tensor | numpy.ndarray,
    above: float,
    *,
    normalize: bool = True,
    where: Where = (),
    backend: str | None = None,
) -> Tensor:
    """Which rows belong together: those whose similarity is above a threshold, and all that a chain
    of such pairs connects (single linkage).

    Every round looks for each row's nearest row of another group and joins the two (Boruvka, "O
    jistem problemu minimalnim", 1926). Rows that find none are done, so that after the first round
    few are left; no pair is stored, whatever the size of the groups: O(N) memory.

    Args:
        x: Embeddings, shape [N, D]. float32, float16, bfloat16 or float64.
        above: Join rows whose score is strictly above this.
        normalize: Score by cosine; else by inner product.
        where: Up to two ``PairFilter``: only pairs that they keep join rows.
        backend: Which backend serves the searches.

    Returns:
        int64 [N]: the first row of each row's group. Rows that have no duplicate are their own.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.

    Example::

        group = duplicate_groups(embeddings, above=0.95)
        unique = embeddings[group == torch.arange(len(group))]
    """
    rows = as_tensor(x, "x")
    check_embeddings("x", rows)
    check_number("above", above)
    filters = check_filters(where, (len(rows), len(rows)), rows.device)
    if len(filters) > 2:
        raise ValueError(f"where: expected at most 2 filters, got {len(filters)}")
    rows = rows.detach()
    group = torch.arange(len(rows), device=rows.device)
    asking = group
    while len(asking):
        kept = [PairFilter(f.query_ids[asking], f.key_ids, f.keep) for f in filters]
        kept.append(PairFilter(group[asking], group, "different"))
        settings = {"normalize": normalize, "above": above, "backend": backend}
        nearest = topk(rows[asking], rows, 1, where=kept, **settings).indices[:, 0]
        found = nearest >= 0
        asking, nearest = asking[found], nearest[found]
        group = _joined(group, asking, nearest)
    return group


def _joined(group: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The groups after these rows' are one: each is named by its first row."""
    while True:
        a, b = group[first], group[second]
        least = torch.minimum(a, b)
        lower = group.scatter_reduce(0, a, least, "amin").scatter_reduce(0, b, least, "amin")
        lower = lower[lower]  # of a row whose group's first row has joined another
        if torch.equal(lower, group):
            return group
        group = lower
