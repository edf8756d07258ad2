"""What a search's parts share: results, factors and dtypes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cl_kernels._precision import accumulator

_AT_ONCE = 8192  # rows
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
    dtype, count = accumulator(x), len(x)
    if count <= _AT_ONCE:
        return factors(x.to(dtype))
    result = x.new_empty(count, dtype=dtype)
    for first in range(0, count, _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        result[part] = factors(x[part].to(dtype))
    return result


def nothing_found(query: Tensor, k: int) -> TopK:
    values = query.new_full((len(query), k), -torch.inf, dtype=accumulator(query))
    return TopK(values, query.new_full((len(query), k), -1, dtype=torch.int64))
