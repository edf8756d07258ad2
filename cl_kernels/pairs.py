"""Which (query, key) pairs a statistic sees, said by vectors instead of an M x N boolean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_FILTERS = 2


def _id_vector(name: str, ids: Tensor) -> Tensor:
    if not isinstance(ids, Tensor):
        ids = _from_sequence(name, ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {ids.dtype}")
    if ids.dim() != 1:
        raise ValueError(f"{name}: expected one id for each row (1-D), got shape {list(ids.shape)}")
    return ids.to(torch.int64).contiguous()


def _from_sequence(name: str, ids: Sequence[int]) -> Tensor:
    """Of a list or a NumPy array."""
    try:
        return torch.as_tensor(ids, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(ids).__name__
        raise TypeError(f"{name}: expected an integer tensor or a list, got {kind}") from error


@dataclass(frozen=True)
class PairFilter:
    """Keeps the pairs whose ids are the same, or those whose ids differ.

    Args:
        query_ids: Integer ids of the queries, shape [M]; any values (labels, indices, hashes);
            a tensor, or a list or NumPy array for embeddings in host memory.
        key_ids: Integer ids of the keys, shape [N], on the same device.
        keep: ``"same"`` keeps pair (i, j) if ``query_ids[i] == key_ids[j]``; ``"different"``
            keeps it if they differ.

    Raises:
        TypeError: If the ids are not integers.
        ValueError: If the ids are not 1-D or ``keep`` is neither word.
    """

    query_ids: Tensor
    key_ids: Tensor
    keep: Literal["same", "different"]

    def __post_init__(self) -> None:
        if self.keep not in ("same", "different"):
            raise ValueError(f'keep: expected "same" or "different", got {self.keep!r}')
        query_ids = _id_vector("query_ids", self.query_ids)
        same_ids = self.key_ids is self.query_ids
        object.__setattr__(self, "query_ids", query_ids)
        key_ids = query_ids if same_ids else _id_vector("key_ids", self.key_ids)
        object.__setattr__(self, "key_ids", key_ids)


Where = PairFilter | Sequence[PairFilter] | None


def as_filters(where: Where, most: int = MAX_FILTERS) -> tuple[PairFilter, ...]:
    """The filters of a ``where`` argument as a tuple of at most ``most``."""
    filters = (where,) if isinstance(where, PairFilter) else () if where is None else where
    if not isinstance(filters, (tuple, list)) or not all(
        isinstance(f, PairFilter) for f in filters
    ):
        kind = type(where).__name__
        raise TypeError(f"where: expected a PairFilter or a sequence of them, got {kind}")
    if len(filters) > most:
        plural = "s" if most > 1 else ""
        raise ValueError(f"where: expected at most {most} filter{plural}, got {len(filters)}")
    return tuple(filters)


def count_same(query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """How many keys [N] have the query's id, [M]."""
    ordered, ids = key_ids.sort().values, query_ids.contiguous()
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
