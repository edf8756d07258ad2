"""Settings of a run: fields of a dataclass that are options of its command."""

import argparse
from dataclasses import field, fields
from typing import Any


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field of a settings class, which is an option of the command too."""
    return field(default=default, metadata={"help": help, "choices": choices})


class Checked:
    """A settings class that names what is wrong."""

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)}")


def add_settings(parser: argparse.ArgumentParser, config: type[Any], preset: str = "") -> None:
    """An option for each setting; ``preset``: what the defaults are those of."""
    for each in fields(config):
        default = "none" if each.default in (None, "") else each.default
        parser.add_argument(
            "--" + each.name.replace("_", "-"),
            type=each.type,
            choices=each.metadata["choices"],
            default=argparse.SUPPRESS,
            help=f"{each.metadata['help']} ({preset + ': ' * bool(preset)}{default})",
        )


def given_settings(options: argparse.Namespace, config: type[Any]) -> dict[str, Any]:
    """Those that the command line names."""
    return {s.name: getattr(options, s.name) for s in fields(config) if hasattr(options, s.name)}
