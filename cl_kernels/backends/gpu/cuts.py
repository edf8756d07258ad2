"""How a problem is cut: spans that fill a GPU, waves and blocks that fit a workspace."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

PARTIAL_BYTES = 256 * 2**20  # of partial results of columns that exist at a time
SLAB_BYTES = 256 * 2**20  # of the weights of a wide problem that exist at a time
SLAB_SHAPE: tuple[int, int] | None = None  # rows and columns of one, where not what fits
SLAB_UNIT = 256  # what the sides of their blocks are multiples of, for whole tiles


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2


def spans(blocks: int, N: int, block: int, wanted: int) -> tuple[int, int]:
    """Into how many spans of how many keys the visits of ``blocks`` row blocks are split.

    About ``wanted`` programs in all, of at least four tiles of ``block`` keys each.
    """
    splits = max(1, min(wanted // blocks, N // (4 * block)))
    span = ceil_div(ceil_div(N, splits), block) * block
    return ceil_div(N, span), span


def waves(blocks: int, N: int) -> Iterator[tuple[int, int]]:
    """(first, count) of row blocks whose partial results, N floats each, fit the workspace."""
    size = max(1, PARTIAL_BYTES // (4 * N))
    for first in range(0, blocks, size):
        yield first, min(size, blocks - first)


@dataclass(frozen=True)
class Slabs:
    """A matrix of weights in square blocks, of which one exists at a time."""

    rows: int
    cols: int
    row_step: int
    col_step: int
    triangle: bool = False

    @classmethod
    def of(cls, rows: int, cols: int, itemsize: int) -> Slabs:
        """A thin matrix has long blocks; equal blocks leave no sliver at the end."""
        if SLAB_SHAPE is not None:
            return cls(rows, cols, *SLAB_SHAPE)
        elements = SLAB_BYTES // itemsize
        edge = math.isqrt(elements)
        row_step = _step(rows, max(edge, elements // cols))
        return cls(rows, cols, row_step, _step(cols, max(edge, elements // row_step)))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for r in range(0, self.rows, self.row_step):
            for c in range(r if self.triangle else 0, self.cols, self.col_step):
                yield (
                    slice(r, min(r + self.row_step, self.rows)),
                    slice(c, min(c + self.col_step, self.cols)),
                )

    def upper(self) -> Slabs:
        """Square blocks, of which only those on and above the diagonal are visited."""
        return replace(self, col_step=self.row_step, triangle=True)


def _step(length: int, most: int) -> int:
    most = max(SLAB_UNIT, most // SLAB_UNIT * SLAB_UNIT)
    return ceil_div(ceil_div(length, ceil_div(length, most)), SLAB_UNIT) * SLAB_UNIT
