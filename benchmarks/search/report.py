"""From pytest-benchmark's JSON to ``search.json``, and from that to tables."""

from __future__ import annotations

from typing import Any

from benchmarks.neighbours import DISTURBED
from benchmarks.report import bytes_text, machine_line, seconds_text, table
from benchmarks.search.cases import GOALS, MEMORY_LIMIT, OVER_PLAIN, SearchCase
from benchmarks.search.contestants import RIVALS
from benchmarks.timing import compare


def summarise(raw: dict[str, Any]) -> dict[str, Any]:
    """The paired comparisons of all contestants, and the peak bytes of ours."""
    entries = []
    for run in raw["benchmarks"]:
        info = run["extra_info"]
        entry = SearchCase(*info["search"])._asdict()
        if "rival" in info:
            ours = [seconds / info["loops"] for seconds in run["stats"]["data"]]
            entry |= {"who": info["who"], "rival": info["rival"]}
            entry |= compare(ours, info["rival_seconds"]) | {"neighbours": info["neighbours"]}
        else:
            entry |= {"peak_extra_bytes": info["peak_extra_bytes"]}
        entries.append(entry)
    return {"machine": raw["machine_info"], "search": entries}


def _case(entry: dict[str, Any]) -> SearchCase:
    return SearchCase(*(entry[field] for field in SearchCase._fields))


def _met(value: float, limit: float) -> str:
    return "yes" if value <= limit else "**no**"


def goals_table(entries: list[dict[str, Any]]) -> str:
    peaks = {_case(e): e["peak_extra_bytes"] for e in entries if "peak_extra_bytes" in e}
    rows = []
    for entry in entries:
        if entry.get("who") != "ours":
            continue
        case = _case(entry)
        against_ours = entry["rival"] == "unfiltered"
        goal = (OVER_PLAIN if against_ours else GOALS).get(case)
        rows.append([
            case.kind, str(case.k), f"{case.queries} x {case.keys} x {case.width}",
            seconds_text(entry["ours_seconds"]),
            "ours, unfiltered" if against_ours else "the bare product",
            f"{entry['ratio']:.2f} ({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f})",
            f"<= {goal:g}" if goal else "", _met(entry["ratio"], goal) if goal else "",
            bytes_text(peaks[case]) if case in peaks else "",
        ])  # fmt: skip
    header = ["corpus", "k", "size", "time", "beside", "ratio (quartiles)", "goal", "met"]
    header.append(f"extra memory (limit {bytes_text(MEMORY_LIMIT)})")
    return table(header, rows) if rows else ""


def rivals_table(entries: list[dict[str, Any]]) -> str:
    """Times the bare product, a row per contestant and a column per k."""
    product = [e for e in entries if e.get("rival") == "product" and e["kind"] == "random"]
    counts = sorted({e["k"] for e in product})
    ratios = {(e["who"], e["k"]): e for e in product}

    def text(who: str, k: int) -> str:
        return f"{ratios[who, k]['ratio']:.2f}" if (who, k) in ratios else ""

    rows = [
        [who, *(text(who, k) for k in counts)]
        for who in ("ours", *RIVALS)
        if any((who, k) in ratios for k in counts)
    ]
    return table(["times the product", *(f"k = {k}" for k in counts)], rows) if rows else ""


def report(summary: dict[str, Any]) -> str:
    """The tables of one machine, in markdown."""
    entries = summary["search"]
    parts = [machine_line(summary["machine"])]
    parts += [body for body in (goals_table(entries), rivals_table(entries)) if body]
    if busy := sum(e.get("neighbours", 0) > DISTURBED for e in entries):
        parts.append(
            f"Not a quiet machine: {busy} of the timings ran beside other processes that kept "
            "cores busy."
        )
    return "\n\n".join(parts)
