"""What holds inside a ``with`` block, for the thread that entered it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Value = TypeVar("Value")


class _Entry(Generic[Value]):
    def __init__(self, value: Value) -> None:
        self.value = value


class _Here(threading.local):
    """Of each thread its own."""

    def __init__(self) -> None:
        self.entries: tuple[_Entry, ...] = ()


class Scopes(Generic[Value]):
    """The blocks that each thread is in, and their values.

    Kept by thread, as torch keeps its grad mode, and not in a ``ContextVar``: torch.compile reads
    and guards the former and cannot trace the latter (torch 2.11 to 2.14).
    """

    def __init__(self) -> None:
        self._here = _Here()

    def innermost(self) -> Value | None:
        """The value of the block entered last, None outside of any."""
        entries = self._here.entries
        return entries[-1].value if entries else None

    @contextmanager
    def entered(self, value: Value) -> Iterator[Value]:
        entry = _Entry(value)
        self._here.entries = (*self._here.entries, entry)
        try:
            yield value
        finally:  # tasks and generators of one thread may leave in any order: each takes its own
            self._here.entries = tuple(e for e in self._here.entries if e is not entry)
