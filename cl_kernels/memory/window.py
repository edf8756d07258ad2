"""The newest rows of some tensors, as views that nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor


class Window:
    """The newest ``size`` rows of some tensors that all have as many, oldest first.

    Each row of the memory behind is written once, so autograd may keep ``views`` past any number
    of pushes, and nobody has to copy them. New rows go behind the newest; where memory ends, the
    rows that stay begin other memory: a quarter of ``size`` later, so that a row is copied some
    four times in its life.

    Args:
        size: How many rows are kept at most.
        memory: [capacity, ...] each, on which the views lie.
        start: The oldest row.
        stop: Behind the newest.
    """

    def __init__(
        self,
        size: int,
        memory: Sequence[Tensor],
        start: int = 0,
        stop: int = 0,
        written: list[int] | None = None,
    ):
        self.size, self.memory, self.start, self.stop = size, tuple(memory), start, stop
        self._written = [stop] if written is None else written  # of all windows on this memory
        self.views = tuple(x[start:stop] for x in self.memory)

    @classmethod
    def of(cls, size: int, rows: Sequence[Tensor]) -> Window:
        return cls(size, _memory(size, rows)).pushed(rows)

    def __len__(self) -> int:
        return self.stop - self.start

    def __reduce__(self):
        # Copies and pickles of the views would not lie on those of the memory.
        return Window, (self.size, self.memory, self.start, self.stop)

    def pushed(self, rows: Sequence[Tensor]) -> Window:
        """With more rows; this one stays as it is."""
        rows = [x[-self.size :] for x in rows]
        new = rows[0].shape[0]
        kept = min(len(self), self.size - new)
        memory, start, stop = self.memory, self.stop - kept, self.stop
        written = self._written
        if stop + new > memory[0].shape[0] or stop != written[0]:  # or a copy went on from here
            memory = _memory(self.size, memory)
            for x, old in zip(memory, self.memory, strict=True):
                x[:kept] = old[start:stop]
            start, stop, written = 0, kept, [kept]
        for x, of in zip(memory, rows, strict=True):
            # .data has a version of its own: the views' stays, since their rows do.
            x.data[stop : stop + new] = of
        written[0] = stop + new
        return Window(self.size, memory, start, stop + new, written)

    def moved(self, fn: Callable[[Tensor], Tensor]) -> Window:
        return Window(self.size, [fn(x) for x in self.memory], self.start, self.stop)


def _memory(size: int, like: Sequence[Tensor]) -> list[Tensor]:
    capacity = size + max(size // 4, 1)
    return [x.new_empty((capacity, *x.shape[1:]), requires_grad=False) for x in like]
