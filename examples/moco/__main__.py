"""``python -m examples.moco``: train, evaluate, report. The same command again resumes."""

import argparse
import sys
from collections.abc import Sequence

from examples.common.command import ended
from examples.common.images import command
from examples.common.settings import given_settings
from examples.moco.config import Config, make_config
from examples.moco.train import Trainer, loss_facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the example; returns the exit status."""
    parser = command.make_parser("moco", "Train MoCo v2 or v3 and report what it learned.", Config)
    return ended(parser, arguments, run, command.ERRORS)


def run(options: argparse.Namespace) -> str:
    """Trains as the settings and options say; returns the text to print."""
    config = make_config(given_settings(options, Config), quick=options.quick)
    with command.prepared(config, options, Trainer, f"moco-{config.version}") as ready:
        return command.train(ready, loss_facts)


if __name__ == "__main__":
    sys.exit(main())
