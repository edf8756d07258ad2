"""Lists of keys, one for each query: offsets and keys, as in a compressed sparse row matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Lists = Tensor | tuple[Tensor, Tensor]


class CSR(NamedTuple):
    """Row i's keys are ``keys[offsets[i]:offsets[i + 1]]``.

    Args:
        offsets: int64, shape [M + 1], rising from 0 to the number of keys.
        keys: int64 indices of keys, shape [nnz].
    """

    offsets: Tensor
    keys: Tensor

    def counts(self) -> Tensor:
        """How many keys each row has, [M]."""
        return self.offsets.diff()

    def rows(self) -> Tensor:
        """The row of each key, [nnz]."""
        index = torch.arange(len(self.offsets) - 1, device=self.keys.device)
        return index.repeat_interleave(self.counts(), output_size=len(self.keys))

    def gather(self, index: Tensor) -> CSR:
        """The lists of some rows, in the order of ``index``."""
        counts = self.counts()[index]
        offsets = _offsets(counts)
        within = torch.arange(int(offsets[-1]), device=self.keys.device)
        shift = self.offsets[:-1][index] - offsets[:-1]
        return CSR(offsets, self.keys[within + shift.repeat_interleave(counts)])

    def within_rows_sorted(self) -> CSR:
        """The same lists, each in rising order."""
        if len(self.keys) == 0:
            return self
        base = self.rows() * (self.keys.max() + 1)
        return CSR(self.offsets, (base + self.keys).sort().values - base)

    def between(self, first: int, last: int) -> CSR:
        """The lists of the keys in [first, last), counted from ``first``."""
        inside = (self.keys >= first) & (self.keys < last)
        before = torch.zeros(len(self.keys) + 1, dtype=torch.int64, device=self.keys.device)
        torch.cumsum(inside, 0, out=before[1:])
        return CSR(before[self.offsets], self.keys[inside] - first)


def _offsets(counts: Tensor) -> Tensor:
    offsets = counts.new_zeros(len(counts) + 1)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def as_csr(name: str, value: Lists, rows: int, num_keys: int, device: torch.device) -> CSR:
    """Lists of keys given in any form, checked.

    Args:
        name: The argument's name, for messages.
        value: A ``CSR`` or a tuple of its parts, one key for each row [M], or [M, P] padded
            with -1.
        rows: M.
        num_keys: Keys are indices in [0, num_keys).
        device: Where the lists must be.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
            Values are read, on a GPU too: a wrong list would read outside of a tensor.
    """
    if isinstance(value, Tensor):
        csr = _from_tensor(name, value, rows)
    elif isinstance(value, tuple) and len(value) == 2:
        csr = CSR(
            *(_integers(f"{name} {part}", x) for part, x in zip(CSR._fields, value, strict=True))
        )
        _check_offsets(name, csr, rows)
    else:
        raise TypeError(
            f"{name}: expected a CSR (offsets, keys) or an index tensor, got {type(value).__name__}"
        )
    for x in csr:
        if x.device != device:
            raise ValueError(f"{name}: expected the device of query, {device}, got {x.device}")
    if len(csr.keys):
        low, high = int(csr.keys.min()), int(csr.keys.max())
        if low < 0 or high >= num_keys:
            raise ValueError(f"{name}: expected keys in [0, {num_keys}), got {low} to {high}")
    return csr


def _from_tensor(name: str, value: Tensor, rows: int) -> CSR:
    value = _integers(name, value, dims=(1, 2))
    if value.shape[0] != rows:
        raise ValueError(
            f"{name}: expected one row for each of the {rows} queries, "
            f"got shape {list(value.shape)}"
        )
    if value.dim() == 1:
        return CSR(torch.arange(rows + 1, device=value.device), value)
    if value.numel() and int(value.min()) < -1:
        raise ValueError(f"{name}: expected keys, or -1 as padding, got {int(value.min())}")
    filled = value >= 0
    return CSR(_offsets(filled.sum(1)), value[filled])


def _integers(name: str, x: Tensor, dims: tuple[int, ...] = (1,)) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected an integer tensor, got {type(x).__name__}")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer tensor, got {x.dtype}")
    if x.dim() not in dims:
        expected = " or ".join(f"{d}-D" for d in dims)
        raise ValueError(f"{name}: expected a {expected} tensor, got shape {list(x.shape)}")
    return x.to(torch.int64).contiguous()


def _check_offsets(name: str, csr: CSR, rows: int) -> None:
    if len(csr.offsets) != rows + 1:
        raise ValueError(
            f"{name}: expected offsets of length {rows + 1}, one more than there are queries, "
            f"got {len(csr.offsets)}"
        )
    first, last = int(csr.offsets[0]), int(csr.offsets[-1])
    if first != 0 or last != len(csr.keys):
        raise ValueError(
            f"{name}: expected offsets from 0 to the number of keys, {len(csr.keys)}, "
            f"got {first} to {last}"
        )
    if bool((csr.offsets.diff() < 0).any()):
        raise ValueError(f"{name}: expected rising offsets, got some that fall")
