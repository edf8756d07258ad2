"""The command of an example on images: train, evaluate, report. Repeated, it resumes."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from examples.common.command import to_the_end, working_in
from examples.common.images.config import ImageConfig
from examples.common.images.data import DataError, Images, load
from examples.common.images.evaluate import monitor
from examples.common.images.memory import LossFacts
from examples.common.images.scalars import tensorboard
from examples.common.images.train import Trainer
from examples.common.ranks import expect_alone, joined
from examples.common.settings import add_settings

ERRORS = (DataError,)  # besides those of every example


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
    add("--out", type=Path, help="default: a folder below runs/, said at the end")
    add("--fresh", action="store_true", help="delete the checkpoint in --out")
    add("--quick", action="store_true", help="a few seconds, to see that it works")
    add("--monitor", type=int, default=0, metavar="EPOCHS", help="k-NN and probe every so often")
    add("--tensorboard", action="store_true", help="write scalars below --out")
    add("--no-report", action="store_true", help="train only")
    add_settings(parser, config, "digits")
    return parser


@contextmanager
def prepared(
    config: ImageConfig, options: argparse.Namespace, kind: Callable[..., Trainer], name: str
) -> Iterator[Run]:
    """The images, the trainer and the folder, which can be written and is ours until the end."""
    if options.monitor < 0:
        raise ValueError(f"monitor must not be negative, got {options.monitor}")
    if options.download:
        expect_alone("download")
    images = load(config.data, options.root, config.image_size, download=options.download)
    folder = options.out or Path("runs", name, config.data + "-quick" * options.quick)
    with joined(config.device) as ranks:
        trainer = kind(config, images.train, images.train_groups, ranks)
        with working_in(folder, trainer):
            yield Run(trainer, images, folder, options)


def train(run: Run, facts: Callable[[Any, int], LossFacts]) -> str:
    """Trains, or continues, and reports, with ``facts`` of the loss; returns the text to print."""
    trainer, images, folder, options = run
    path = to_the_end(trainer, folder, fresh=options.fresh, run=partial(_watched, run))
    if options.no_report or not trainer.ranks.first:
        return f"trained: {path}"
    from examples.common.images.report import write_report  # plots: a second of imports

    return write_report(trainer, images, folder, facts)


def _watched(run: Run, path: Path) -> None:
    """Trains to the end; the first process watches as the options ask."""
    trainer, images, folder, options = run
    if not trainer.ranks.first:
        trainer.run(path)
        return
    scalars = folder / "tensorboard"
    begin = trainer.epoch * trainer.steps
    with tensorboard(scalars, begin) if options.tensorboard else nullcontext() as log:
        trainer.run(
            path,
            monitor=partial(monitor, images=images) if options.monitor else None,
            every=options.monitor,
            log=log or (lambda step, values: None),
        )
