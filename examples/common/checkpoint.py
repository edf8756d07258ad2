"""Checkpoints that survive a kill at any moment and bring back every random generator."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says why and what to do."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``path``, which at every moment holds a whole checkpoint or nothing."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
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


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running any code that it may contain."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({error}); --fresh starts over"
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
