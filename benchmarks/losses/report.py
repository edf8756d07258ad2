"""From pytest-benchmark's JSON to our summary, and from the summary to tables.

``python -m benchmarks.losses.report`` prints the tables of every summary under
``benchmarks/results/``; ``--markdown`` the brief ones that the README quotes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from benchmarks.losses.cases import GOALS, LOSSES, NAMES, Case
from benchmarks.losses.family import FamilySize, family_tables
from benchmarks.losses.options import STATISTIC_LIMIT, OptionCase
from benchmarks.neighbours import DISTURBED
from benchmarks.report import RESULTS, bytes_text, machine_line, seconds_text, table
from benchmarks.timing import LEAST_PAIRS, compare


def summarise(raw: dict[str, Any]) -> dict[str, Any]:
    """One entry per case: paired comparisons with each rival, peak bytes of each contestant."""
    time: dict[Case, dict[str, Any]] = {}
    memory: dict[Case, dict[str, Any]] = {}
    options: list[dict[str, Any]] = []
    family: list[dict[str, Any]] = []
    for run in raw["benchmarks"]:
        info = run["extra_info"]
        if "rival" in info:
            ours = [seconds / info["loops"] for seconds in run["stats"]["data"]]
            result = compare(ours, info["rival_seconds"])
            result["neighbours"] = info["neighbours"]
            if "option" in info:
                options.append(OptionCase(*info["option"])._asdict() | result)
            elif "family" in info:
                family.append(FamilySize(*info["family"])._asdict() | result)
            else:
                time.setdefault(Case(*info["case"]), {})[info["rival"]] = result
        else:
            case = Case(*info["case"])
            entry = memory.setdefault(case, {"limit": case.memory_limit})
            entry |= {"matrix": case.matrix_bytes, info["who"]: info["peak_extra_bytes"]}
            entry[f"{info['who']}_seconds"] = info["seconds"]
    return {
        "machine": raw["machine_info"],
        "time": [case._asdict() | entry for case, entry in time.items()],
        "options": options,
        "family": family,
        "memory": [case._asdict() | entry for case, entry in memory.items()],
    }


def by_case(entries: Iterable[dict[str, Any]]) -> dict[Case, dict[str, Any]]:
    return {Case(e["name"], e["rows"], e["width"]): e for e in entries}


def goals_table(time: dict[Case, dict[str, Any]]) -> str:
    rows = []
    for case, goal in GOALS.items():
        entry = time.get(case, {})
        if "product" not in entry:
            continue
        ours, eager = entry["product"], entry.get("eager")
        met = "yes" if ours["ratio"] <= goal.times_product else "**no**"
        rows.append([
            f"`{case.name}`", f"{case.rows}", f"{case.width}",
            seconds_text(ours["ours_seconds"]),
            f"{ours['ratio']:.2f} ({ours['ratio_low']:.2f} to {ours['ratio_high']:.2f})",
            f"<= {goal.times_product:g}", f"{goal.floor:g}", met,
            f"{ours['ratio'] / eager['ratio']:.1f}" if eager else "",
            f"{1 / eager['ratio']:.1f}" if eager else "",
        ])  # fmt: skip
    header = ["case", "rows", "D", "time", "times the product (quartiles)", "goal", "floor", "met"]
    return table([*header, "eager, times the product", "faster than eager"], rows) if rows else ""


def ratio_table(time: dict[Case, dict[str, Any]], rival: str) -> str:
    """Our time over the rival's, a row per loss and width, a column per number of rows.

    Slower than eager PyTorch is bold; a median of fewer than 15 pairs says of how many.
    """
    cells = {case: entry[rival] for case, entry in time.items() if rival in entry}
    all_rows = sorted({case.rows for case in cells})

    def text(case: Case) -> str:
        if case not in cells:
            return ""
        cell = cells[case]
        ratio = f"{cell['ratio']:.2f}"
        if rival == "eager" and cell["ratio"] > 1:
            ratio = f"**{ratio}**"
        return ratio if cell["pairs"] >= LEAST_PAIRS else f"{ratio} ({cell['pairs']} pairs)"

    lines = sorted({(NAMES.index(case.name), case.width) for case in cells})
    rows = [
        [f"`{NAMES[name]}`", str(width), *(text(Case(NAMES[name], n, width)) for n in all_rows)]
        for name, width in lines
    ]
    return table([r"case \ rows", "D", *map(str, all_rows)], rows) if rows else ""


def memory_table(memory: dict[Case, dict[str, Any]]) -> str:
    rows = []
    for case in sorted(memory, key=lambda c: (NAMES.index(c.name), c.rows, c.width)):
        entry = memory[case]
        if "ours" not in entry:
            continue
        met = "yes" if entry["ours"] <= entry["limit"] else "**no**"
        eager = bytes_text(entry["eager"]) if "eager" in entry else ""
        sizes = [f"`{case.name}`", str(case.rows), str(case.width)]
        ours = [bytes_text(entry["ours"]), bytes_text(entry["limit"]), met]
        once = seconds_text(entry["ours_seconds"])
        rows.append([*sizes, *ours, eager, bytes_text(entry["matrix"]), once])
    header = ["case", "rows", "D", "peak extra memory", "limit", "met", "eager", "the matrix"]
    header.append("one cold pass")
    return table(header, rows) if rows else ""


def _options_table(entries: dict[OptionCase, dict[str, Any]], limit: float, header: str) -> str:
    """Ratios, a row per option and a column per size; above the limit is bold. Where several have
    the option, the least and the largest."""
    sizes = sorted({(case.width, case.rows) for case in entries})
    labels = list(dict.fromkeys(_option_label(case) for case in entries))

    def text(label: str, width: int, rows: int) -> str:
        ratios = [
            entry["ratio"]
            for case, entry in entries.items()
            if (_option_label(case), case.width, case.rows) == (label, width, rows)
        ]
        if not ratios:
            return ""
        shown = [f"**{r:.2f}**" if r > limit else f"{r:.2f}" for r in (min(ratios), max(ratios))]
        return " to ".join(dict.fromkeys(shown))

    rows = [[label, *(text(label, width, n) for width, n in sizes)] for label in labels]
    return table([header, *(f"{n} x {width}" for width, n in sizes)], rows) if rows else ""


def _option_label(case: OptionCase) -> str:
    return f"`{case.name}`: {case.option}" if case.name in LOSSES else case.option


def options_tables(entries: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Of losses and of primitives, each with its title."""
    cases = {OptionCase(*(e[field] for field in OptionCase._fields)): e for e in entries}
    losses = {case: e for case, e in cases.items() if case.name in LOSSES}
    primitives = {case: e for case, e in cases.items() if case.name not in LOSSES}
    return [
        ("Losses with options, time over that of eager PyTorch; pairs x D",
         _options_table(losses, 1, "loss and option")),
        ("Primitives with an option, time over that without (least and largest); rows x D",
         _options_table(primitives, STATISTIC_LIMIT, "option")),
    ]  # fmt: skip


def slower_than_eager(summary: dict[str, Any]) -> list[str]:
    """Losses whose median ratio to eager PyTorch is above 1."""
    return [
        f"{case}: {entry['eager']['ratio']:.2f}"
        for case, entry in by_case(summary["time"]).items()
        if case.name in LOSSES and "eager" in entry and entry["eager"]["ratio"] > 1
    ]


def disturbed(summary: dict[str, Any]) -> list[str]:
    """Cases that other processes kept from being timed well."""
    timed = [
        (f"{case} against {rival}", entry[rival])
        for case, entry in by_case(summary["time"]).items()
        for rival in ("eager", "product")
        if rival in entry
    ]
    timed += [
        (" ".join(str(entry[name]) for name in OptionCase._fields), entry)
        for entry in summary.get("options", ())
    ]
    timed += [
        (str(FamilySize(*(e[f] for f in FamilySize._fields))), e) for e in summary.get("family", ())
    ]
    return [
        f"{name} ({result['neighbours']:.2g})"
        for name, result in timed
        if result["neighbours"] > DISTURBED
    ]


def report(summary: dict[str, Any], brief: bool = False) -> str:
    """The tables of one machine, in markdown; for a README (``brief``) what a user asks first."""
    time, memory = by_case(summary["time"]), by_case(summary["memory"])
    unit = {c: e for c, e in time.items() if c.rows >= 1024 and not brief}
    if brief:
        time = {c: e for c, e in time.items() if c.name in LOSSES}
        memory = {c: e for c, e in memory.items() if c.name in LOSSES and c.rows >= 8192}
    sections = [
        ("Forward + backward, in units of the bare product", goals_table(time)),
        ("Time over that of eager PyTorch", ratio_table(time, "eager")),
        ("Time over that of the bare product", ratio_table(unit, "product")),
        *family_tables(summary.get("family", ())),
        *options_tables(summary.get("options", ())),
        ("Peak memory beyond inputs and their gradients", memory_table(memory)),
    ]  # fmt: skip
    parts = [machine_line(summary["machine"])]
    parts += [f"**{title}**\n\n{body}" for title, body in sections if body]
    if slower := slower_than_eager(summary):
        parts.append("Slower than eager PyTorch: " + ", ".join(slower))
    if cases := disturbed(summary):
        count = f"{len(cases)} of the timings ran beside other processes that kept cores busy"
        parts.append(f"Not a quiet machine: {count}" + ("." if brief else f": {', '.join(cases)}"))
    return "\n\n".join(parts)


def committed() -> list[dict[str, Any]]:
    """Every machine's full run."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("cpu-*/summary.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses.report", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="the brief tables for a README")
    options = parser.parse_args()
    tables = "\n\n".join(report(summary, options.markdown) for summary in committed())
    if not tables:
        parser.error(f"no results under {RESULTS}: run python -m benchmarks.losses first")
    print(tables)


if __name__ == "__main__":
    main()
