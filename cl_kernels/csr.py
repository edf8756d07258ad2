"""Lists of keys, one for each query: offsets and keys, as in a compressed sparse row matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cl_kernels._numbers import check_integers
from cl_kernels.reading import readable

Lists = Tensor | tuple[Tensor, Tensor] | Sequence[Sequence[int]] | Mapping[int, Sequence[int]]


class CSR(NamedTuple):
    """Row i's keys are ``keys[offsets[i]:offsets[i + 1]]``.

    Args:
        offsets: int64, shape [M + 1], rising from 0 to the number of keys.
        keys: int64 indices of keys, shape [nnz].
    """

    offsets: Tensor
    keys: Tensor

    @classmethod
    def from_lists(
        cls,
        lists: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
        rows: int | None = None,
        device: torch.device | str = "cpu",
    ) -> CSR:
        """Of Python lists, one for each row; or of a dict from rows to lists.

        Args:
            lists: The keys of each row. A row that a dict does not name has none.
            rows: M. Default: the number of lists; a dict's largest row + 1.
            device: Where the tensors shall be.

        Example:
            >>> CSR.from_lists([[3, 1], [], [2]]).offsets
            tensor([0, 2, 2, 3])
        """
        if isinstance(lists, Mapping):
            wrong = [row for row in lists if not isinstance(row, Integral) or row < 0]
            if wrong or (rows is not None and any(row >= rows for row in lists)):
                least = "" if rows is None else f" below {rows}"
                raise ValueError(f"lists: expected rows from 0{least}, got {[*lists][:10]}")
            rows = max(lists, default=-1) + 1 if rows is None else rows
            lists = [lists.get(row, ()) for row in range(rows)]
        if rows is not None and len(lists) != rows:
            raise ValueError(f"lists: expected one for each of {rows} rows, got {len(lists)}")
        try:
            keys = [_index(key) for keys in lists for key in keys]
            counts = torch.tensor([len(keys) for keys in lists], dtype=torch.int64, device="cpu")
        except (TypeError, ValueError) as error:
            raise TypeError(f"lists: expected lists of integers, {error}") from error
        keys = torch.tensor(keys, dtype=torch.int64, device="cpu")
        return cls(_offsets(counts).to(device), keys.to(device))

    @classmethod
    def from_mask(cls, mask: Tensor) -> CSR:
        """Of the places of a boolean [M, N] that hold True. Reads values, on a GPU too."""
        return cls(_offsets(mask.sum(1)), mask.nonzero()[:, 1])

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

    def between(self, first: int, last: int) -> CSR:
        """The lists of the keys in [first, last), counted from ``first``."""
        inside = (self.keys >= first) & (self.keys < last)
        before = torch.zeros(len(self.keys) + 1, dtype=torch.int64, device=self.keys.device)
        torch.cumsum(inside, 0, out=before[1:])
        return CSR(before[self.offsets], self.keys[inside] - first)


def _index(key: object) -> int:
    if isinstance(key, bool) or not isinstance(key, Integral):
        raise TypeError(f"got {key!r}")
    return int(key)


def _offsets(counts: Tensor) -> Tensor:
    offsets = counts.new_zeros(len(counts) + 1)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def as_csr(name: str, value: Lists, rows: int, num_keys: int, device: torch.device) -> CSR:
    """Lists of keys given in any form, checked.

    Args:
        name: The argument's name, for messages.
        value: A ``CSR`` or a tuple of its parts; one key for each row [M], or [M, P] padded
            with -1; a boolean [M, N]; Python lists, or a dict of them.
        rows: M.
        num_keys: Keys are indices in [0, num_keys).
        device: Where the lists must be.

    Raises:
        TypeError, ValueError: The message names the argument, what was expected and what came.
            Values are read, on a GPU too: a wrong list would read outside of a tensor.
    """
    lists = _parsed(name, value, rows, num_keys, device)
    if isinstance(lists, Tensor):
        _check_device(name, (lists,), device)
        _check_keys(name, lists, num_keys)
        return _from_tensor(lists)
    _check_device(name, lists, device)
    _check_offsets(name, lists)
    _check_keys(name, lists.keys, num_keys)
    return lists


def left_out(name: str, value: Lists, rows: int, num_keys: int, device: torch.device) -> CSR:
    """Lists that a search leaves out, each in rising order.

    As ``as_csr``, but nothing is read that lives on a GPU, or that torch.compile traces: a key
    outside of [0, num_keys), such as padding, is one that is never found.
    """
    lists = _parsed(name, value, rows, num_keys, device)
    if isinstance(lists, Tensor):
        _check_device(name, (lists,), device)
        if readable(lists):
            _check_keys(name, lists, num_keys)
        padded = lists[:, None] if lists.dim() == 1 else lists
        offsets = torch.arange(rows + 1, device=device) * padded.shape[1]
        return CSR(offsets, padded.sort(1).values.flatten())
    _check_device(name, lists, device)
    offsets, keys = lists
    if readable(offsets):
        _check_offsets(name, lists)
        _check_keys(name, keys, num_keys)
    else:  # whatever they hold, they stay inside
        offsets = offsets.clamp(0, keys.shape[0]).cummax(0).values
    place = torch.arange(keys.shape[0], device=device)
    base = torch.searchsorted(offsets[1:], place, right=True) * (num_keys + 2)
    return CSR(offsets, (base + keys.clamp(-1, num_keys)).sort().values - base)


def _parsed(name: str, value: Lists, rows: int, num_keys: int, device) -> CSR | Tensor:
    """Lists that have offsets, or an index tensor, [M] or [M, P]."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bool:
            _check_mask(name, value, rows, num_keys)
            return CSR.from_mask(value)
        return _indices(name, value, rows)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor):
        parts = zip(CSR._fields, value, strict=True)
        csr = CSR(*(_integers(f"{name} {part}", x) for part, x in parts))
        if csr.offsets.shape[0] != rows + 1:
            raise ValueError(
                f"{name}: expected offsets of length {rows + 1}, one more than there are queries, "
                f"got {len(csr.offsets)}"
            )
        return csr
    if isinstance(value, (Sequence, Mapping)) and not isinstance(value, str):
        try:
            return CSR.from_lists(cast(Any, value), rows, device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    raise TypeError(
        f"{name}: expected a CSR (offsets, keys), an index tensor, a mask or lists, "
        f"got {type(value).__name__}"
    )


def _check_mask(name: str, mask: Tensor, rows: int, num_keys: int) -> None:
    if mask.shape != (rows, num_keys):
        raise ValueError(
            f"{name}: expected a mask of shape [{rows}, {num_keys}], got {list(mask.shape)}"
        )


def _check_device(name: str, parts: Sequence[Tensor], device: torch.device) -> None:
    for x in parts:
        if x.device != device:
            raise ValueError(f"{name}: expected the device of query, {device}, got {x.device}")


def _check_keys(name: str, keys: Tensor, num_keys: int) -> None:
    """Raises unless they are in [0, num_keys); lists [M, P] are padded with -1."""
    if not keys.numel():
        return
    low, high = int(keys.min()), int(keys.max())
    if low < 1 - keys.dim() or high >= num_keys:
        padding = ", or -1 as padding" if keys.dim() == 2 else ""
        raise ValueError(f"{name}: expected keys in [0, {num_keys}){padding}, got {low} to {high}")


def _indices(name: str, value: Tensor, rows: int) -> Tensor:
    value = _integers(name, value, dims=(1, 2))
    if value.shape[0] != rows:
        raise ValueError(
            f"{name}: expected one row for each of the {rows} queries, "
            f"got shape {list(value.shape)}"
        )
    return value


def _from_tensor(value: Tensor) -> CSR:
    if value.dim() == 1:
        return CSR(torch.arange(len(value) + 1, device=value.device), value)
    filled = value >= 0
    return CSR(_offsets(filled.sum(1)), value[filled])


def _integers(name: str, x: Any, dims: tuple[int, ...] = (1,)) -> Tensor:
    check_integers(name, x)
    if x.dim() not in dims:
        expected = " or ".join(f"{d}-D" for d in dims)
        raise ValueError(f"{name}: expected a {expected} tensor, got shape {list(x.shape)}")
    return x.to(torch.int64).contiguous()


def _check_offsets(name: str, csr: CSR) -> None:
    first, last = int(csr.offsets[0]), int(csr.offsets[-1])
    if first != 0 or last != len(csr.keys):
        raise ValueError(
            f"{name}: expected offsets from 0 to the number of keys, {len(csr.keys)}, "
            f"got {first} to {last}"
        )
    if bool((csr.offsets.diff() < 0).any()):
        raise ValueError(f"{name}: expected rising offsets, got some that fall")
