"""The command of an example on images: train, evaluate, report. Repeated, it resumes."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from examples.common.checkpoint import CheckpointError
from examples.common.guards import (
    NonFiniteLoss,
    OutputError,
    check_output_folder,
    one_line,
    writing,
)
from examples.common.images.config import ImageConfig
from examples.common.images.data import DataError, Images, load
from examples.common.images.evaluate import monitor
from examples.common.images.memory import LossFacts
from examples.common.images.scalars import tensorboard
from examples.common.images.train import Trainer
from examples.common.lock import LockError, hold
from examples.common.process import ProcessError

ERRORS = (
    CheckpointError,
    DataError,
    ImportError,
    LockError,
    OSError,
    OutputError,
    ProcessError,
    ValueError,
)
INTERRUPTED = "interrupted; the same command resumes after the last whole epoch"


class Run(NamedTuple):
    """What a command works on: nobody else uses the folder."""

    trainer: Trainer
    images: Images
    folder: Path
    options: argparse.Namespace


def make_parser(name: str, description: str, config: type[ImageConfig]) -> argparse.ArgumentParser:
    """One option for each setting, and those that do not touch the weights."""
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=f"{description} Killed? The same command resumes.",
    )
    add = parser.add_argument
    add("--root", type=Path, help="where cifar10, stl10 or the image folder lie")
    add("--download", action="store_true", help="fetch cifar10 or stl10 into root")
    add("--out", type=Path, help=f"default: runs/{name}/DATA")
    add("--fresh", action="store_true", help="delete the checkpoint in --out")
    add("--quick", action="store_true", help="a few seconds, to see that it works")
    add("--monitor", type=int, default=0, metavar="EPOCHS", help="k-NN and probe every so often")
    add("--tensorboard", action="store_true", help="write scalars below --out")
    add("--no-report", action="store_true", help="train only")
    for setting in fields(config):
        add(
            "--" + setting.name.replace("_", "-"),
            type=setting.type,
            choices=setting.metadata["choices"],
            default=argparse.SUPPRESS,
            help=f"{setting.metadata['help']} (digits: {setting.default})",
        )
    return parser


def given_settings(options: argparse.Namespace, config: type[ImageConfig]) -> dict[str, Any]:
    """The settings that the command line names."""
    return {s.name: getattr(options, s.name) for s in fields(config) if hasattr(options, s.name)}


def ended(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace], str],
) -> int:
    """Runs a command, prints what it says, and returns the exit status."""
    options = parser.parse_args(arguments)
    try:
        print(run(options))
    except ERRORS as error:
        print(f"{parser.prog}: {one_line(error, 2000)}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"{parser.prog}: stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def prepared(
    config: ImageConfig, options: argparse.Namespace, kind: Callable[..., Trainer], name: str
) -> Iterator[Run]:
    """The images, the trainer and the folder, which can be written and is ours until the end."""
    if options.monitor < 0:
        raise ValueError(f"monitor must not be negative, got {options.monitor}")
    images = load(config.data, options.root, config.image_size, download=options.download)
    trainer = kind(config, images.train, images.train_groups)
    folder = options.out or Path("runs", name, config.data + "-quick" * options.quick)
    check_output_folder(folder, trainer.disk_bytes())
    with hold(folder), writing(folder, OSError):
        yield Run(trainer, images, folder, options)


def train(run: Run, facts: Callable[[Any, int], LossFacts]) -> str:
    """Trains, or continues, and reports, with ``facts`` of the loss; returns the text to print."""
    trainer, images, folder, options = run
    path = folder / "checkpoint.pt"
    if options.fresh:
        path.unlink(missing_ok=True)
    if path.exists():
        trainer.resume(path)
        print(f"resumed {path} after epoch {trainer.epoch} of {trainer.config.epochs}")
    try:
        _to_the_end(run, path)
    except NonFiniteLoss as error:
        print(f"all ids of the batch are in {error.save(folder)}", file=sys.stderr)
        raise
    if options.no_report:
        return f"trained: {path}"
    from examples.common.images.report import write_report  # plots: a second of imports

    return write_report(trainer, images, folder, facts)


def _to_the_end(run: Run, path: Path) -> None:
    """Trains to the end, watched as the options ask."""
    trainer, images, folder, options = run
    scalars = folder / "tensorboard"
    begin = trainer.epoch * trainer.steps
    with tensorboard(scalars, begin) if options.tensorboard else nullcontext() as log:
        trainer.run(
            path,
            monitor=partial(monitor, images=images) if options.monitor else None,
            every=options.monitor,
            log=log or (lambda step, values: None),
        )
