"""What the commands of the examples share: how they end, and how a run has its folder."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from examples.common.checkpoint import CheckpointError
from examples.common.guards import (
    NonFiniteLoss,
    OutputError,
    check_output_folder,
    one_line,
    writing,
)
from examples.common.lock import LockError, hold
from examples.common.process import ProcessError
from examples.common.ranks import started_first
from examples.common.run import TrainingRun

CHECKPOINT = "checkpoint.pt"
RESUMES = "the same command resumes after the last whole epoch"
INTERRUPTED = f"interrupted; {RESUMES}"
PATIENCE = 2.0  # seconds
OTHERS_GONE = ("closed by peer", "reset by peer", "Broken pipe", "waited for the others in vain")
EXPECTED = (
    CheckpointError, ImportError, LockError, OSError, OutputError, ProcessError, ValueError
)  # fmt: skip


def ended(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace], str],
    errors: tuple[type[Exception], ...],
) -> int:
    """Runs a command, prints what it says, and returns the exit status.

    Of several processes that torchrun started, the first speaks.

    Args:
        parser: Of its arguments.
        arguments: Those; None: the process's.
        run: The command.
        errors: Its own, besides those that all share, whose messages say what to do.
    """
    speaks = started_first()
    with nullcontext() if speaks else _silence():
        options = parser.parse_args(arguments)
    status, said = _outcome(parser.prog, lambda: run(options), errors)
    if speaks:
        show(said, sys.stderr if status else sys.stdout)
    elif status:
        time.sleep(PATIENCE)  # torchrun ends all as soon as one ends, and the first has to speak
    return status


def _outcome(
    prog: str, run: Callable[[], str], errors: tuple[type[Exception], ...]
) -> tuple[int, str]:
    """Exit status, and what is to be said."""
    try:
        return 0, run()
    except NonFiniteLoss as error:
        return 3, f"{prog}: stopped: {error}"
    except (*EXPECTED, *errors) as error:
        return 2, f"{prog}: {one_line(error, 2000)}"
    except KeyboardInterrupt:
        return 130, f"\n{INTERRUPTED}"
    except RuntimeError as error:
        if not any(words in str(error) for words in OTHERS_GONE):
            raise
        return 1, f"{prog}: another process of this run has ended; {RESUMES}"


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        yield


def show(text: str, file: TextIO) -> None:
    """Prints; what the terminal cannot show becomes question marks."""
    encoding = file.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=file, flush=True)


@contextmanager
def working_in(folder: Path, trainer: TrainingRun) -> Iterator[None]:
    """Around a run: the folder can be written, and is its own; the first process has it for all."""
    if not trainer.ranks.first:
        trainer.ranks.wait()  # for the first to have it
        yield
        return
    check_output_folder(folder, trainer.disk_bytes())
    with hold(folder), writing(folder, OSError):
        trainer.ranks.wait()
        yield


def to_the_end(
    trainer: TrainingRun,
    folder: Path,
    *,
    fresh: bool,
    run: Callable[[Path], Any] | None = None,
    about: Callable[[list[int]], str] = lambda ids: "",
) -> Path:
    """Trains, or continues, to the last epoch; returns the checkpoint.

    Args:
        trainer: The run.
        folder: Its own.
        fresh: Whether a checkpoint that is there is deleted.
        run: Does it; default: ``trainer.run``.
        about: What to say besides of the ids of a batch whose loss is not finite.
    """
    path, ranks = folder / CHECKPOINT, trainer.ranks
    if fresh and ranks.first:
        path.unlink(missing_ok=True)
    ranks.wait()  # before others look
    if path.exists():
        trainer.resume(path)
        if ranks.first:
            print(f"resumed {path} after epoch {trainer.epoch} of {trainer.epochs}")
    ranks.wait()  # before the first writes another
    try:
        (run or trainer.run)(path)
    except NonFiniteLoss as error:
        if ranks.first:
            where = error.save(folder)
            print(f"all ids of the batch are in {where}{about(error.ids)}", file=sys.stderr)
        raise
    ranks.wait()
    return path
