"""The README's table of losses."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from catalogue.family import FAMILY
from catalogue.losses import LOSSES
from catalogue.wrappers import WRAPPERS


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = signature(function).parameters.values()
    kinds = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL
    return [str(p).split(":")[0] for p in parameters if p.kind in kinds]


def table() -> str:
    """The README's table of losses."""
    lines = ["| loss | function | module |", "|---|---|---|"]
    for case in (*LOSSES.values(), *FAMILY.values(), *WRAPPERS.values()):
        call = f"{case.name}({', '.join(_positional(case.ours))})"
        module = "" if case.module is None else f"`{case.module.__name__}`"
        lines.append(f"| {case.title} | `{call}` | {module} |")
    return "\n".join(lines)
