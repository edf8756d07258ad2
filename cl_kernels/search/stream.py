"""Keys in host memory, a block at a time on the queries' device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

_BLOCK_BYTES = 64 << 20  # two blocks are on the device at a time


def blocks(key: Tensor, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Blocks of host keys on a device; each is copied while the one before it is in use."""
    rows = max(1, _BLOCK_BYTES // max(1, key.shape[1] * key.element_size()))
    rows = rows if rows < 4096 else rows // 4096 * 4096
    starts = range(0, len(key), rows)
    if device.type != "cuda":
        for first in starts:
            yield first, key[first : first + rows].to(device)
        return
    copies = torch.cuda.Stream(device)
    staging = None  # a pinned copy of what is not pinned, or the transfer would not overlap
    if not key.is_pinned():
        staging = [key.new_empty((rows, key.shape[1]), pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event(), torch.cuda.Event()]

    def send(turn: int, first: int) -> Tensor:
        part = key[first : first + rows]
        if staging is not None:
            copied[turn].synchronize()  # the block that was staged here before has left
            part = staging[turn][: len(part)].copy_(part)
        with torch.cuda.stream(copies):
            block = part.to(device, non_blocking=True)
            copied[turn].record(copies)
        return block

    waiting = None
    for n, first in enumerate(starts):
        block = send(n % 2, first) if waiting is None else waiting
        waiting = send((n + 1) % 2, starts[n + 1]) if n + 1 < len(starts) else None
        in_use = torch.cuda.current_stream(device)
        in_use.wait_event(copied[n % 2])
        block.record_stream(in_use)
        yield first, block.contiguous()


class _NoBar:
    def update(self, count: int) -> None:
        pass


def progress_bar(wanted: bool) -> Callable[..., Any]:
    if not wanted:
        return lambda **_: nullcontext(_NoBar())
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress: a progress bar needs tqdm (pip install tqdm)") from error
    return tqdm
