"""The README's table of losses."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from catalogue.family import FAMILY
from catalogue.losses import LOSSES


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]


def table() -> str:
    """The README's table of losses."""
    lines = ["| loss | function | module |", "|---|---|---|"]
    for case in (*LOSSES.values(), *FAMILY.values()):
        call = f"{case.name}({', '.join(_positional(case.ours))})"
        module = "" if case.module is None else f"`{case.module.__name__}`"
        lines.append(f"| {case.title} | `{call}` | {module} |")
    return "\n".join(lines)
