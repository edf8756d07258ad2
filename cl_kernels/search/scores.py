"""What a search's parts share: results, factors and dtypes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import accumulator

_SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize: a zero vector scores 0


class TopK(NamedTuple):
    """The best keys of each query, best first.

    Args:
        values: Their scores, [M, k]; -inf where no key is left (+inf for ``largest=False``).
        indices: Which keys, int64 [M, k]; -1 where no key is left.
    """

    values: Tensor
    indices: Tensor


def factors(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1).clamp_min_(_SMALLEST_NORM).reciprocal_()


def inverse_norms(x: Tensor) -> Tensor:
    """1 / |row| in float32 (float64), without a copy of all rows."""
    result = x.new_empty(len(x), dtype=accumulator(x))
    for first in range(0, len(x), 8192):
        part = slice(first, first + 8192)
        result[part] = factors(x[part].to(result.dtype))
    return result


def nothing_found(query: Tensor, k: int) -> TopK:
    values = query.new_full((len(query), k), -torch.inf, dtype=accumulator(query))
    return TopK(values, query.new_full((len(query), k), -1, dtype=torch.int64))
