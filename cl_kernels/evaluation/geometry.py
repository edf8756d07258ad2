"""How embeddings lie on the unit sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cl_kernels._precision import widest
from cl_kernels.pairs import PairFilter
from cl_kernels.statistics.functions import self_logsumexp
from cl_kernels.statistics.rows import float_rows

_ROWS = 8192  # rows that are converted to the widest type at a time
_UNIFORMITY = 2.0  # t of its equation


def of_geometry(sides: Sequence[Tensor], index: Tensor, backend: str | None) -> dict[str, Any]:
    """Of one or two sides of a batch; the uniformity of some of their rows."""
    units = [float_rows(x, normalize=True) for x in sides]
    return {
        "mean_similarity": sum(map(mean_similarity, units)) / len(units),
        "uniformity": sum(uniformity(x[index], backend) for x in units) / len(units),
        "effective_rank": effective_rank(*units),
        "full_rank": min(sum(map(len, units)), units[0].shape[1]),
        "duplicates": max(map(duplicates, sides)),
    }


def mean_similarity(unit: Tensor) -> float:
    """Of all pairs of different rows: their sum is a square."""
    rows, wide = len(unit), widest(unit.device)
    squares = unit.sum(0, dtype=wide).square().sum() - unit.square().sum(dtype=wide)
    return squares.item() / (rows * (rows - 1)) if rows > 1 else math.nan


def uniformity(unit: Tensor, backend: str | None) -> float:
    """``log mean exp(-t |x - y|^2)`` over different rows; ``-t |x - y|^2 = 2 t (cos - 1)``."""
    rows = len(unit)
    if rows < 2:
        return math.nan
    index, scale = torch.arange(rows, device=unit.device), 2 * _UNIFORMITY
    others = PairFilter(index, index, "different")
    lse = self_logsumexp(unit, scale, where=others, logit_bound=1.01 * scale, backend=backend)
    return lse.logsumexp(0).item() - scale - math.log(rows * (rows - 1))


def effective_rank(*sides: Tensor) -> float:
    """The exponential of the entropy of the singular values of all rows, which are the roots of
    the D x D matrix's eigenvalues."""
    wide = widest(sides[0].device)
    parts = (part.to(wide) for rows in sides for part in rows.split(_ROWS))
    values = torch.linalg.eigvalsh(sum(part.T @ part for part in parts)).clamp_min(0).sqrt()
    share = values / values.sum().clamp_min(torch.finfo(wide).tiny)
    return torch.special.entr(share).sum().exp().item()


def duplicates(x: Tensor) -> float:
    """Share of the rows that equal an earlier one."""
    return 1 - len(torch.unique(float_rows(x, normalize=False), dim=0)) / len(x)
