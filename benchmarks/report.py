"""What the tables of all suites are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory import MEGABYTE

RESULTS = Path(__file__).parent / "results"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, padded so that it reads well in a terminal too."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    pad = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([pad[0], rule, *pad[1:]])


def seconds_text(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def bytes_text(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{max(size, 0) / MEGABYTE:.1f} MB"


def machine_line(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['isa']}, {machine['backend']} backend; "
        f"{versions}; commit {machine['commit']}; {machine['date'][:10]}"
    )
