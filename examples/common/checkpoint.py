"""Checkpoints that survive a kill at any moment and bring back every random generator."""

import os
import secrets
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from examples.common.guards import one_line, writing


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says why and what to do."""


class Resumable(Protocol):
    """What can be continued from a checkpoint of its ``kind``."""

    kind: str

    def settings(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``path``, which at every moment holds a whole checkpoint or nothing.

    Raises:
        OutputError: It cannot be written; ``path`` is as before.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with writing(path):
            with partial.open("xb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            if os.name == "posix":  # the new name is on disk only once its folder is
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, kind: str) -> dict[str, Any]:
    """Reads a checkpoint of a ``kind`` without running any code that it may contain.

    Raises:
        CheckpointError: The file is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({one_line(error)}); --fresh starts over"
        ) from error
    found = state.get("kind") if isinstance(state, dict) else None
    if found != kind:
        what = f"one of {found}" if isinstance(found, str) else "something else"
        raise CheckpointError(
            f"{path}: expected a checkpoint of {kind}, got {what}; name another folder with "
            "--out, or --fresh starts over"
        )
    return state


def resume(path: Path, run: Resumable) -> None:
    """Continues ``run`` from ``path``.

    Raises:
        CheckpointError: The checkpoint is damaged or belongs to another run.
    """
    state = load(path, run.kind)
    try:
        check_same(path, state["settings"], run.settings())
        run.load_state_dict(state)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not fit this run ({one_line(error)}); --fresh starts over"
        ) from error


def check_same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses to continue a run under other settings, and names each that differs."""
    differences = [
        f"{name} is {saved.get(name)!r} there and {wanted.get(name)!r} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(differences)}. Give the same settings to "
            "resume it, --out for a new run beside it, or --fresh to start over"
        )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators: weights and augmentations are drawn from them."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Undoes every draw since ``random_state``."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
