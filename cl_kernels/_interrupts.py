"""Ctrl-C during a call of a compiled library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def interruptible(compute: Callable[..., Any]) -> Callable[..., Any]:
    """``compute``, out of which a signal handler's own exception comes, such as KeyboardInterrupt.

    The library runs handlers during a call. If one raises, the call ends with a RuntimeError, as
    every C++ exception does, and the handler's exception is one of Python's pending calls.
    """

    def call(*args):
        try:
            return compute(*args)
        except RuntimeError:
            _run_pending_calls()
            raise

    return call


def _run_pending_calls() -> None:
    """Python does so whenever a function begins."""
