"""Inputs of encoders cut into chunks by rows or by tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

MASK = "attention_mask"


class Chunk(NamedTuple):
    rows: slice | Tensor  # int64 [size], where the rows are not a range
    size: int
    tokens: int | None = None  # columns from here on are padding in all rows


def split(name: str, inputs: Any, chunk_size: int | None, max_tokens: int | None) -> list[Chunk]:
    """As few chunks as the limits allow; by rows alone those of ``torch.tensor_split``."""
    rows = _count_rows(name, inputs)
    if max_tokens is not None:
        mask = _find_mask(inputs)
        if mask is not None:
            return _split_by_tokens(_token_counts(mask), chunk_size or rows, max_tokens)
        if chunk_size is None:
            raise ValueError(f"max_tokens: expected a 2-d {MASK!r} in {name}, got none")
    chunk_size = chunk_size or rows
    count = -(-rows // chunk_size)
    size, larger = divmod(rows, count)
    bounds = (i * size + min(i, larger) for i in range(count + 1))
    return [Chunk(slice(begin, end), end - begin) for begin, end in pairwise(bounds)]


def take(inputs: Any, chunk: Chunk, device: torch.device | None = None) -> Any:
    """The chunk's rows of all that has rows, tensors moved to ``device``; the rest as it is."""
    if isinstance(inputs, Mapping):
        trimmed = _trim(inputs, chunk.tokens)
        return {key: take(part, chunk, device) for key, part in trimmed.items()}
    if isinstance(inputs, tuple):
        return tuple(take(part, chunk, device) for part in inputs)
    if _has_rows(inputs):
        inputs = _pick(inputs, chunk.rows)
    return inputs.to(device=device) if isinstance(inputs, Tensor) else inputs


def as_index(rows: slice | Tensor, device: torch.device) -> slice | Tensor:
    """A chunk's rows as an index of tensors there; a GPU is not waited for."""
    return rows if isinstance(rows, slice) else rows.to(device, non_blocking=True)


def _pick(x: Any, rows: slice | Tensor) -> Any:
    if isinstance(rows, slice):
        return x[rows]
    if isinstance(x, list):
        return [x[row] for row in rows.tolist()]
    return x[as_index(rows, x.device)] if isinstance(x, Tensor) else x[rows.tolist()]


def _has_rows(x: Any) -> bool:
    return isinstance(x, list) or getattr(x, "ndim", 0) > 0  # tensors and NumPy arrays


def _parts(inputs: Any) -> Iterator[Any]:
    """The inputs themselves and, in mappings and tuples, all that they hold."""
    yield inputs
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple):
        for part in inputs:
            yield from _parts(part)


def tensors(inputs: Any) -> Iterator[Tensor]:
    for part in _parts(inputs):
        samples = part if isinstance(part, list) else (part,)
        yield from (x for x in samples if isinstance(x, Tensor))


def _count_rows(name: str, inputs: Any) -> int:
    lengths = {len(part) for part in _parts(inputs) if _has_rows(part)}
    if not lengths:
        raise TypeError(
            f"{name}: expected a tensor, a list of samples, or a tuple or mapping of these, "
            f"got {type(inputs).__name__}"
        )
    if len(lengths) > 1:
        raise ValueError(f"{name}: expected parts of one length, got {sorted(lengths)}")
    (rows,) = lengths
    if rows == 0:
        raise ValueError(f"{name}: expected at least 1 sample, got an empty batch")
    return rows


def _mask_of(part: Any) -> Tensor | None:
    mask = part.get(MASK) if isinstance(part, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _find_mask(inputs: Any) -> Tensor | None:
    return next((mask for mask in map(_mask_of, _parts(inputs)) if mask is not None), None)


def _token_counts(mask: Tensor) -> Tensor:
    """Tokens of each row up to the last one attended to; int64 [N] on the CPU."""
    place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return ((mask != 0) * place).amax(1).clamp_min(1).cpu()


def _split_by_tokens(counts: Tensor, chunk_size: int, max_tokens: int) -> list[Chunk]:
    """Rows in the order of their length, the longest first: little of a chunk is padding.

    A row of more tokens than that is a chunk by itself.
    """
    widths, order = counts.sort(descending=True, stable=True)
    chunks, begin = [], 0
    while begin < len(order):
        width = int(widths[begin])
        rows = order[begin : begin + min(chunk_size, max(1, max_tokens // width))]
        chunks.append(Chunk(rows, len(rows), width))
        begin += len(rows)
    return chunks


def _trim(inputs: Mapping[str, Any], tokens: int | None) -> Mapping[str, Any]:
    """The first columns of what has as many columns as the mapping's attention mask."""
    mask = _mask_of(inputs)
    if tokens is None or mask is None:
        return inputs
    columns = mask.shape[1]

    def trim(x: Any) -> Any:
        per_token = isinstance(x, Tensor) and x.dim() >= 2 and x.shape[1] == columns
        return x[:, :tokens] if per_token else x

    return {key: trim(x) for key, x in inputs.items()}
