"""What holds inside a ``with`` block, for the thread that entered it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class _Here(threading.local):
    """Of each thread its own."""

    def __init__(self) -> None:
        self.value: Any = None  # of the block entered last


class Scopes(Generic[Value]):
    """The blocks that each thread is in, and their values.

    Kept by thread, as torch keeps its grad mode, and not in a ``ContextVar``: torch.compile reads
    and guards the former and cannot trace the latter (torch 2.11 to 2.14).
    """

    def __init__(self) -> None:
        self._here = _Here()

    def innermost(self) -> Value | None:
        """The value of the block entered last, None outside of any."""
        return self._here.value

    @contextmanager
    def entered(self, value: Value) -> Iterator[Value]:
        outer = self.innermost()
        self._here.value = value
        try:
            yield value
        finally:
            self._here.value = outer
