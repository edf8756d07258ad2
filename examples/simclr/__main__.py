"""``python -m examples.simclr``: train, evaluate, report. The same command again resumes."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path

from examples.common.checkpoint import CheckpointError
from examples.common.guards import (
    NonFiniteLoss,
    OutputError,
    check_output_folder,
    one_line,
    writing,
)
from examples.common.lock import LockError, hold
from examples.simclr.compare import ArmError, compare
from examples.simclr.config import Config, make_config
from examples.simclr.data import DataError, Images, load
from examples.simclr.evaluate import monitor
from examples.simclr.memory import parse_size
from examples.simclr.scalars import tensorboard
from examples.simclr.train import Trainer

ERRORS = (
    ArmError,
    CheckpointError,
    DataError,
    ImportError,
    LockError,
    OSError,
    OutputError,
    ValueError,
)


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, and those that do not touch the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.simclr",
        description="Train SimCLR and report what it learned. Killed? The same command resumes.",
    )
    add = parser.add_argument
    add("--root", type=Path, help="where cifar10, stl10 or the image folder lie")
    add("--download", action="store_true", help="fetch cifar10 or stl10 into root")
    add("--out", type=Path, help="default: runs/simclr/DATA")
    add("--fresh", action="store_true", help="delete the checkpoint in --out")
    add("--quick", action="store_true", help="a few seconds, to see that it works")
    add("--monitor", type=int, default=0, metavar="EPOCHS", help="k-NN and probe every so often")
    add("--tensorboard", action="store_true", help="write scalars below --out")
    add("--no-report", action="store_true", help="train only")
    add("--compare", action="store_true", help="train the eager loss too, within --budget")
    add("--budget", default="1GiB", metavar="SIZE", help="memory of an eager step (1GiB)")
    for setting in fields(Config):
        add(
            "--" + setting.name.replace("_", "-"),
            type=setting.type,
            choices=setting.metadata["choices"],
            default=argparse.SUPPRESS,
            help=f"{setting.metadata['help']} (digits: {setting.default})",
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    given = {s.name: getattr(options, s.name) for s in fields(Config) if hasattr(options, s.name)}
    try:
        config = make_config(given, quick=options.quick)
        print(run(config, options))
    except ERRORS as error:
        print(f"{parser.prog}: {one_line(error, 2000)}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"{parser.prog}: stopped: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes after the last whole epoch", file=sys.stderr)
        return 130
    return 0


def run(config: Config, options: argparse.Namespace) -> str:
    """Trains as the settings and options say; returns the text to print."""
    budget = parse_size(options.budget)
    if options.monitor < 0:
        raise ValueError(f"monitor must not be negative, got {options.monitor}")
    images = load(config.data, options.root, config.image_size, download=options.download)
    trainer = Trainer(config, images.train, images.train_groups)
    folder = options.out or Path("runs/simclr", config.data + "-quick" * options.quick)
    check_output_folder(folder, trainer.disk_bytes())
    with hold(folder), writing(folder, OSError):
        if options.compare:
            return compare(config, images, options.root, folder / "compare", budget)
        return train(trainer, images, folder, options)


def train(trainer: Trainer, images: Images, folder: Path, options: argparse.Namespace) -> str:
    """Trains, or continues, and reports; returns the text to print."""
    path = folder / "checkpoint.pt"
    if options.fresh:
        path.unlink(missing_ok=True)
    if path.exists():
        trainer.resume(path)
        print(f"resumed {path} after epoch {trainer.epoch} of {trainer.config.epochs}")
    try:
        to_the_end(trainer, images, path, options)
    except NonFiniteLoss as error:
        print(f"all ids of the batch are in {error.save(folder)}", file=sys.stderr)
        raise
    if options.no_report:
        return f"trained: {path}"
    from examples.simclr.report import write_report  # plots: a second of imports

    return write_report(trainer, images, folder)


def to_the_end(trainer: Trainer, images: Images, path: Path, options: argparse.Namespace) -> None:
    """Trains to the end, watched as the options ask."""
    scalars = path.parent / "tensorboard"
    begin = trainer.epoch * trainer.steps
    with tensorboard(scalars, begin) if options.tensorboard else nullcontext() as log:
        trainer.run(
            path,
            monitor=partial(monitor, images=images) if options.monitor else None,
            every=options.monitor,
            log=log or (lambda step, values: None),
        )


if __name__ == "__main__":
    sys.exit(main())
