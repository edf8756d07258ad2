"""Checks that end a run before it costs hours, and say what is wrong."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

Ids = Iterable[int] | Tensor
NAMED_IDS = 16  # of a batch, in a message; all of them are in the file that ``save`` writes


class OutputError(Exception):
    """Results could not be written; the message says where and why."""


@contextmanager
def writing(path: Path, errors: type[Exception] = Exception) -> Iterator[None]:
    """Around what writes ``path``: ``errors`` end as ``OutputError``.

    Writers of tensors, indices and plots have errors of their own: where nothing but writing is
    done they all count. Around code that computes as well name ``OSError``.
    """
    try:
        yield
    except OutputError:
        raise
    except errors as error:
        raise OutputError(
            f"{path} cannot be written ({one_line(error)}); make room, and the same command goes "
            "on from the last checkpoint"
        ) from error


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """Gives a folder to write, which then takes the place of ``place`` as one.

    Raises:
        OutputError: It cannot be written; what was there before still is.
    """
    aside, old = (place.with_name(place.name + suffix) for suffix in (".partial", ".old"))
    with writing(place):
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        yield aside
        if place.exists():
            place.rename(old)
        aside.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def one_line(error: object, most: int = 300) -> str:
    """A message without line breaks, cut to ``most`` characters; never empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def check_output_folder(folder: Path, needed_bytes: int) -> None:
    """Makes ``folder`` and really writes a file there as large as the run will need.

    Raises:
        OutputError: The folder cannot be made or written, or its disk has too little room.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".room-") as file:
            free = shutil.disk_usage(folder).free
            if free < needed_bytes:
                raise OutputError(
                    f"{folder} has {_size(free)} of free disk, and this run needs "
                    f"{_size(needed_bytes)}; make room, or name another folder with --out"
                )
            file.write(b"room?")
            file.flush()
            if hasattr(os, "posix_fallocate") and needed_bytes > 0:  # sees quotas as well
                os.posix_fallocate(file.fileno(), 0, needed_bytes)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written with {_size(needed_bytes)} ({error}); nothing was "
            "trained. Name another folder with --out"
        ) from error


class NonFiniteLoss(FloatingPointError):
    """Training met a NaN or an infinity and stopped.

    Attributes:
        step: The step of the run, counted from 1.
        ids: The examples of its batch, as indices into the training set.
        checkpoint: The last good checkpoint, or None where none was written yet.
    """

    def __init__(self, what: str, step: int, ids: Ids, checkpoint: Path | None) -> None:
        self.step, self.ids, self.checkpoint = step, [int(i) for i in ids], checkpoint
        named = ", ".join(str(i) for i in self.ids[:NAMED_IDS])
        more = f", ... ({len(self.ids)} in all)" if len(self.ids) > NAMED_IDS else ""
        good = f"is {checkpoint}" if checkpoint else "does not exist: none was written yet"
        super().__init__(
            f"{what} at step {step}; ids of its batch: {named}{more}; "
            f"the last good checkpoint {good}"
        )

    def save(self, folder: Path) -> Path:
        """Writes step, ids and checkpoint to ``folder/nonfinite.json``, and gives its path."""
        path = folder / "nonfinite.json"
        good = None if self.checkpoint is None else str(self.checkpoint)
        record = {"error": str(self), "step": self.step, "checkpoint": good, "ids": self.ids}
        with writing(path):
            path.write_text(json.dumps(record) + "\n")
        return path


def check_finite(loss: float, step: int, ids: Ids, checkpoint: Path | None) -> None:
    """Raises ``NonFiniteLoss`` unless ``loss`` is a finite number."""
    if not math.isfinite(loss):
        raise NonFiniteLoss(f"the loss is {loss}", step, ids, checkpoint)


def check_finite_weights(model: nn.Module, step: int, ids: Ids, checkpoint: Path | None) -> None:
    """Before a save: weights spoiled by a gradient must not replace a good checkpoint."""
    for name, weight in model.state_dict().items():
        if isinstance(weight, Tensor) and not torch.isfinite(weight).all():
            raise NonFiniteLoss(f"the weights {name} are not finite", step, ids, checkpoint)


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
