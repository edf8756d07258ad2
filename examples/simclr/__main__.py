"""``python -m examples.simclr``: train, evaluate, report. The same command again resumes."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from examples.simclr.checkpoint import CheckpointError
from examples.simclr.config import Config, make_config
from examples.simclr.data import DataError, load
from examples.simclr.report import write_report
from examples.simclr.train import Trainer


def make_parser() -> argparse.ArgumentParser:
    """One option for each setting, and those that do not touch the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.simclr",
        description="Train SimCLR and report what it learned. Killed? The same command resumes.",
    )
    parser.add_argument("--root", type=Path, help="where cifar10, stl10 or the image folder lie")
    parser.add_argument("--download", action="store_true", help="fetch cifar10 or stl10 into root")
    parser.add_argument("--out", type=Path, help="default: runs/simclr/DATA")
    parser.add_argument("--fresh", action="store_true", help="delete the checkpoint in --out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    for setting in fields(Config):
        parser.add_argument(
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
        images = load(config.data, options.root, config.image_size, download=options.download)
        trainer = Trainer(config, images.train)
        folder = options.out or Path("runs/simclr", config.data + "-quick" * options.quick)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "checkpoint.pt"
        if options.fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            trainer.resume(path)
            print(f"resumed {path} after epoch {trainer.epoch} of {config.epochs}")
        trainer.run(path)
        print(write_report(trainer, images, folder))
    except (CheckpointError, DataError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes after the last whole epoch", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
