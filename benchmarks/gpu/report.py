"""Tables of what the suites wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import GpuCase
from benchmarks.report import bytes_text, seconds_text, table


def load(folder: Path, suite: str) -> dict[str, Any]:
    path = folder / f"{suite}.json"
    return json.loads(path.read_text()) if path.exists() else {"measured": []}


def by_case(entries: list[dict[str, Any]]) -> dict[GpuCase, dict[str, dict[str, Any]]]:
    found: dict[GpuCase, dict[str, dict[str, Any]]] = {}
    for entry in entries:
        case = GpuCase(**{name: entry[name] for name in GpuCase._fields})
        found.setdefault(case, {})[entry["who"]] = entry
    return found


def _time(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return entry.get("error") or seconds_text(entry["seconds"])


def _memory(entry: dict[str, Any] | None) -> str:
    peak = entry.get("peak_extra_bytes") if entry else None
    return bytes_text(peak) if peak is not None else ""


def goals_table(document: dict[str, Any]) -> str:
    rows = []
    cases = by_case(document["measured"])
    usual = ("ours", "eager", "product")
    rivals = sorted({who for entries in cases.values() for who in entries} - set(usual))
    for case, entries in cases.items():
        ours = entries.get("ours", {})
        of_goal = rate = ""
        if "seconds" in ours:
            of_goal = f"{ours['seconds'] / case.goal:.2f}" if case.goal else ""
            rate = f"{case.product_flop / ours['seconds'] / 1e12:.0f}" if case.forward_only else ""
        rows.append([
            case.title, str(case.rows), str(case.width), _time(ours or None),
            seconds_text(case.goal) if case.goal else "", of_goal, rate,
            *(_time(entries.get(who)) for who in ("eager", *rivals, "product")),
            _memory(ours), _memory(entries.get("eager")),
        ])  # fmt: skip
    header = ["bfloat16", "rows", "D", "ours", "goal", "of the goal", "TFLOP/s", "eager"]
    header += [*rivals, "bare product", "memory", "eager's"]
    return table(header, rows) if rows else ""


def small_table(document: dict[str, Any]) -> str:
    rows = []
    for case, entries in by_case(document["measured"]).items():
        pair = entries["pair"]
        cells = [pair.get("error", ""), "", ""]
        if "ratio" in pair:
            slower = "**" if pair["ratio"] > 1 else ""
            times = (seconds_text(pair[f"{who}_seconds"]) for who in ("ours", "rival"))
            cells = [*times, f"{slower}{pair['ratio']:.2f}{slower}"]
        rows.append([case.name, str(case.rows), str(case.width), *cells])
    header = ["bfloat16", "rows", "D", "ours", "eager", "ours / eager"]
    return table(header, rows) if rows else ""


def report(folder: Path) -> str:
    small, goals, topk, huge = (load(folder, s) for s in ("small", "goals", "topk", "huge"))
    goals["measured"] = goals["measured"] + topk["measured"] + huge["measured"]
    parts = [small_table(small), goals_table(goals)]
    if missing := goals.get("not installed"):
        parts.append(f"Not installed here, so not measured: {', '.join(missing)}")
    return "\n\n".join(part for part in parts if part)
