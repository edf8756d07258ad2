"""Writes the committed results into the README: ``python -m benchmarks.readme``.

Each section's tables stand between markers of its name, so that the README quotes what was
committed and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import grad_cache, mining
from benchmarks.losses.report import report
from benchmarks.report import RESULTS, machine_line
from benchmarks.search.report import report as search_report
from catalogue.table import table

README = Path(__file__).parents[1] / "README.md"


def _with_machine(summary: dict[str, Any], tables: str) -> str:
    return f"{machine_line(summary['machine'])}\n\n{tables}"


# Section -> the file of each machine, and what it looks like.
SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "losses": ("summary.json", lambda s: report(s, brief=True)),
    "search": ("search.json", search_report),
    "mining": ("mining.json", lambda s: _with_machine(s, mining.report(s["mining"]))),
    "grad cache": ("grad_cache.json", lambda s: _with_machine(s, grad_cache.report(s["results"]))),
}


CATALOGUE = "catalogue"


def markers(section: str) -> tuple[str, str]:
    return f"<!-- {section}: begin -->", f"<!-- {section}: end -->"


def insert(document: str, section: str, tables: str) -> str:
    """The document with what stands between the section's markers replaced."""
    begin, end = markers(section)
    before, found_begin, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"expected the lines {begin} and {end} in the document")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def tables(section: str, results: Path = RESULTS) -> str:
    """Every machine's full run."""
    name, render = SECTIONS[section]
    summaries = [json.loads(path.read_text()) for path in sorted(results.glob(f"*/{name}"))]
    return "\n\n".join(map(render, summaries))


def main() -> None:
    document = insert(README.read_text(), CATALOGUE, table())
    for section in SECTIONS:
        document = insert(document, section, tables(section))
    README.write_text(document)


if __name__ == "__main__":
    main()
