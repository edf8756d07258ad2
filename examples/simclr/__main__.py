"""``python -m examples.simclr``: train, evaluate, report. The same command again resumes."""

import argparse
import sys
from collections.abc import Sequence

from examples.common.command import ended
from examples.common.images import command
from examples.common.images.memory import parse_size
from examples.common.ranks import expect_alone
from examples.common.settings import given_settings
from examples.simclr.compare import compare
from examples.simclr.config import Config, make_config
from examples.simclr.train import Trainer, loss_facts


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, and those that do not touch the weights."""
    parser = command.make_parser("simclr", "Train SimCLR and report what it learned.", Config)
    add = parser.add_argument
    add("--compare", action="store_true", help="train the eager loss too, within --budget")
    add("--budget", default="1GiB", metavar="SIZE", help="memory of an eager step (1GiB)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    return ended(make_parser(), arguments, run, command.ERRORS)


def run(options: argparse.Namespace) -> str:
    """Trains as the settings and options say; returns the text to print."""
    config = make_config(given_settings(options, Config), quick=options.quick)
    budget = parse_size(options.budget)
    if options.compare:
        expect_alone("compare")
    with command.prepared(config, options, Trainer, "simclr") as ready:
        if options.compare:
            folder = ready.folder / "compare"
            return compare(config, ready.images, options.root, folder, budget)
        return command.train(ready, loss_facts)


if __name__ == "__main__":
    sys.exit(main())
