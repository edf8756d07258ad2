"""Which keys answer a query: by label, or listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cl_kernels.csr import CSR, Lists, as_csr
from cl_kernels.pairs import count_same

from .checks import check_labels


class Relevance(Protocol):
    """The relevant keys of M queries, without an M x N mask."""

    def counts(self) -> Tensor:
        """How many relevant keys each query has, [M]."""
        ...

    def contains(self, rows: Tensor, keys: Tensor) -> Tensor:
        """Whether ``keys[i, j]`` is relevant for query ``rows[i]``: [m, k]; False for key -1.

        ``rows`` [m] must not fall.
        """
        ...


@dataclass(frozen=True)
class LabelRelevance:
    """Keys of the query's label are relevant."""

    query_labels: Tensor
    key_labels: Tensor

    def counts(self) -> Tensor:
        return count_same(self.query_labels, self.key_labels)

    def contains(self, rows: Tensor, keys: Tensor) -> Tensor:
        same = self.key_labels[keys.clamp_min(0)] == self.query_labels[rows, None]
        return same & (keys >= 0)


@dataclass(frozen=True)
class _ListRelevance:
    """Relevant pairs as sorted codes ``row * num_keys + key``."""

    codes: Tensor
    rows: int
    num_keys: int

    def counts(self) -> Tensor:
        return torch.bincount(self.codes // self.num_keys, minlength=self.rows)

    def contains(self, rows: Tensor, keys: Tensor) -> Tensor:
        # Only the codes of these rows are searched: they are few, and stay in the cache.
        ends = (rows[[0, -1]] + rows.new_tensor([0, 1])) * self.num_keys
        first, last = torch.searchsorted(self.codes, ends).tolist()
        codes = self.codes[first:last]
        if len(codes) == 0:
            return torch.zeros_like(keys, dtype=torch.bool)
        wanted = rows[:, None] * self.num_keys + keys
        place = torch.searchsorted(codes, wanted).clamp_max_(len(codes) - 1)
        return (codes[place] == wanted) & (keys >= 0)


def label_relevance(query_labels: Tensor, key_labels: Tensor) -> LabelRelevance:
    """Says that the keys of a query's label are its relevant ones, in O(M + N) memory.

    Args:
        query_labels: Integer labels, shape [M]; any values.
        key_labels: Shape [N], on the same device.

    Returns:
        What ``retrieval_metrics`` takes as ``relevant``.
    """
    query_labels = check_labels("query_labels", query_labels)
    device = query_labels.device
    key_labels = check_labels("key_labels", key_labels, like="query_labels", device=device)
    return LabelRelevance(query_labels, key_labels)


def as_relevance(
    relevant: LabelRelevance | Lists, rows: int, num_keys: int, device: torch.device
) -> Relevance:
    """The ``relevant`` argument for M = ``rows`` queries and N = ``num_keys`` keys, checked."""
    if not isinstance(relevant, LabelRelevance):
        csr = as_csr("relevant", relevant, rows, num_keys, device)
        return _ListRelevance(_codes(csr, num_keys), rows, num_keys)
    check_labels("relevant.query_labels", relevant.query_labels, rows, "query", device)
    check_labels("relevant.key_labels", relevant.key_labels, num_keys, "key", device)
    return relevant


def exclusions(
    exclude: Lists | None, exclude_self: bool, rows: int, num_keys: int, device: torch.device
) -> CSR:
    """What each query must not retrieve, sorted and without repetitions."""
    codes = torch.empty(0, dtype=torch.int64, device=device)
    if exclude is not None:
        codes = _codes(as_csr("exclude", exclude, rows, num_keys, device), num_keys)
    if exclude_self:
        if rows != num_keys:
            raise ValueError(
                f"exclude_self: expected as many keys as queries, {rows}, got {num_keys}"
            )
        itself = torch.arange(rows, device=device) * (num_keys + 1)
        codes = torch.cat([codes, itself]).unique()
    starts = torch.arange(rows + 1, device=device) * num_keys
    return CSR(torch.searchsorted(codes, starts), codes % num_keys)


def _codes(csr: CSR, num_keys: int) -> Tensor:
    return (csr.rows() * num_keys + csr.keys).unique()
