"""``python -m examples.clip train`` and ``search``; the same ``train`` resumes.

``torchrun --nproc-per-node 2 -m examples.clip train`` shares every batch among two processes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.clip import index
from examples.clip.config import Config, make_config
from examples.clip.data import Data, DataError, load
from examples.clip.index import SearchError
from examples.clip.train import Trainer
from examples.common.command import ended, show, to_the_end, working_in
from examples.common.guards import one_line
from examples.common.ranks import joined
from examples.common.settings import add_settings, given_settings

DRAWN = 40  # characters of an answer


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, and those that do not touch the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.clip",
        description="Train a picture tower and a name tower, and find characters by their names.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train, evaluate, report; the same command resumes")
    train.add_argument("--fresh", action="store_true", help="delete the checkpoint in --out")
    train.add_argument("--no-report", action="store_true", help="train only")
    ask = commands.add_parser("search", help="answer from what train wrote")
    ask.add_argument("question", help="a name, or some words of it")
    ask.add_argument("--top", type=int, default=10, help="characters to name (10)")
    ask.add_argument("--image", type=Path, help="where to draw them; default: search.png in --out")
    for command in (train, ask):
        command.add_argument("--out", type=Path, help="folder of the run; default: runs/clip")
        command.add_argument("--quick", action="store_true", help="a small run, in its own folder")
    add_settings(train, Config)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    return ended(make_parser(), arguments, run, (DataError, SearchError))


def run(options: argparse.Namespace) -> str:
    """The command that the options name; returns the text to print."""
    return COMMANDS[options.command](options)


def train(options: argparse.Namespace) -> str:
    """Trains, or continues; returns the report."""
    config = make_config(given_settings(options, Config), quick=options.quick)
    folder = _folder(options)
    with joined(config.device) as ranks:
        data = load(config)
        trainer = Trainer(config, data, ranks)
        with working_in(folder, trainer):
            path = to_the_end(trainer, folder, fresh=options.fresh)
            if options.no_report or not ranks.first:
                return f"trained: {path}"
            return _report(trainer, data, folder)


def _report(trainer: Trainer, data: Data, folder: Path) -> str:
    from examples.clip.report import write_report  # plots: a second of imports

    return write_report(trainer, data, folder)


def search(options: argparse.Namespace) -> str:
    """Says the characters nearest to a question, then draws the first of them."""
    from examples.clip.plots import plot_hits

    there = index.load(_folder(options), quick=options.quick)
    hits = index.search(options.question, there, options.top)
    for hit in hits:
        line = f"{hit.score:.3f}  U+{hit.code:04X} {chr(hit.code)}  {hit.name} ({hit.font})"
        show(line, sys.stdout)
    if unknown := index.unknown(options.question, there):
        show(f"not in any name that was trained on: {', '.join(unknown)}", sys.stdout)
    image = options.image or _folder(options) / "search.png"
    if image.is_dir():
        raise ValueError(f"image: expected the name of a file, got the folder {image}")
    image = image if image.suffix else image.with_suffix(".png")
    try:
        plot_hits(options.question, hits[:DRAWN], image)
    except Exception as error:  # each format has its own
        raise SearchError(f"{image} cannot be drawn: {one_line(error)}") from error
    return f"drawn in {image}" + f", the first {DRAWN}" * (len(hits) > DRAWN)


COMMANDS = {"train": train, "search": search}


def _folder(options: argparse.Namespace) -> Path:
    return options.out or Path("runs/clip-quick" if options.quick else "runs/clip")


if __name__ == "__main__":
    sys.exit(main())
