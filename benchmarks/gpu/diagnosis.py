"""The last lines a run prints: all that may be left of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.candidates import CASES as TRIED
from benchmarks.gpu.candidates import worth
from benchmarks.gpu.cases import GOALS, HUGE, SEARCHES, SMALL, GpuCase
from benchmarks.gpu.offline import KEYS_ONLY
from benchmarks.gpu.pool import NO_TIME
from benchmarks.gpu.records import Records
from benchmarks.report import bytes_text, seconds_text

MOST = 8000  # characters
WIDTH = 150  # of a line
SEVERAL = 12  # failures of a stage that are shown


def counted(records: Records) -> str:
    results = [r for cases in records.results.values() for r in cases.values()]
    hits, misses = (sum(r.get(name, 0) for r in results) for name in ("hits", "misses"))
    if records.about.get("rehearsed") == KEYS_ONLY:
        return f"a rehearsal: kernels asked for before: {hits}, for the first time: {misses}"
    text = f"kernels found in the cache: {hits}, compiled here: {misses}"
    if not records.about.get("rehearsed"):
        named = [item for cases in records.results.values() for item in cases.items()]
        late = [case for case, result in named if result.get("misses")]
        text += f" ({', '.join(late[:SEVERAL])})" if late else ""
    return text


def machine(records: Records) -> list[str]:
    about = records.results.get("environment", {}).get("machine", {})
    versions = ", ".join(f"{name} {v}" for name, v in about.get("versions", {}).items())
    head = f"{about.get('device', 'unknown device')}; {versions}; commit {records.about['commit']}"
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in records.seconds.items())
    return [head, counted(records), f"stages: {stages}"]


def kernels(results: dict[str, dict[str, Any]]) -> list[str]:
    """Checks by what they have in common: how many are right, and the worst of them."""
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for case, result in results.items():
        groups.setdefault(case.partition(" D=")[0], []).append((case, result))
    lines = []
    for name, members in groups.items():
        good = sum(r.get("ok") is True for _, r in members)
        if all(r.get("ok", False) is None for _, r in members):
            refused = sum("why" in r for _, r in members)
            text = f"{name}: {len(members) - refused} asked for, not judged"
            lines.append(text + (f", {refused} refused" if refused else ""))
            continue
        known = [r for _, r in members if "times_allowed" in r]
        worst = max(known, key=lambda r: r["times_allowed"], default=None)
        text = f"{name}: {good} of {len(members)} right"
        if worst is not None:
            text += f"; worst {worst['worst']} {worst['times_allowed']:.2g} of what is allowed"
        lines.append(text)
    return lines


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.4g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def goal(case: GpuCase, result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{case}: {result['error']}"
    seconds = result.get("seconds")
    text = f"{case}: {_milliseconds(seconds)} ms"
    text += f", predicted {_milliseconds(case.predicted)}" if case.predicted else ""
    text += f", goal {_milliseconds(case.goal)}" if case.goal else ""
    if seconds and case.forward_only:
        text += f", {case.product_flop / seconds / 1e12:.0f} TF"
    if result.get("peak_extra_bytes") is not None:
        text += f", {bytes_text(result['peak_extra_bytes'])}"
        text += f" of at most {bytes_text(case.goal_bytes)}" if case.goal_bytes else ""
    parts = list(result.get("kernels", {}).items())[:3]
    if parts:
        text += "; " + ", ".join(f"{n[:28]} {_milliseconds(t)}" for n, t in parts)
    return text


def goals(results: dict[str, dict[str, Any]], cases: Iterable[GpuCase], who: str) -> list[str]:
    return [goal(c, results[f"{c} {who}"]) for c in cases if f"{c} {who}" in results]


def rivals(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for case, result in results.items():
        if result.get("error") != NO_TIME:
            known = seconds_text(result["seconds"]) if "seconds" in result else "-"
            lines.append(f"{case}: {result.get('error') or known}")
    return lines


def ceilings(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = []
    for case, result in results.items():
        if "error" in result:
            lines.append(f"{case}: {result['error']}")
        elif "flop a second" in result:
            lines.append(f"{case}: {result['flop a second'] / 1e12:.0f} TF")
        elif "bytes a second" in result:
            lines.append(f"{case}: {result['bytes a second'] / 1e12:.2f} TB/s")
    return ["; ".join(lines)] if lines else []


def candidates(results: dict[str, dict[str, Any]]) -> list[str]:
    lines, better = [], []
    for case in TRIED:
        result = results.get(case, {})
        if "ratio" in result:
            times = f"{_milliseconds(result['seconds'])} for {_milliseconds(result['today'])} ms"
            lines.append(f"{case}: {times}, {result['ratio']:.3f}")
        if "error" in result:
            lines.append(f"{case}: {result['error']}")
        if worth(result):
            better += result.get("lines", ())
    return lines + [f"new line: {line.strip()}" for line in dict.fromkeys(better)]


def small(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        f"{case} {results[name]['ratio']:.2f}"
        for case in SMALL
        if "ratio" in results.get(name := f"{case} pair", {})
    ]
    return ["ours / eager: " + ", ".join(lines)] if lines else []


def tests(results: dict[str, dict[str, Any]]) -> list[str]:
    outcomes = [r.get("outcome", "lost") for r in results.values()]
    counts = {name: outcomes.count(name) for name in dict.fromkeys(outcomes)}
    return [", ".join(f"{count} {name}" for name, count in counts.items())] if counts else []


def failures(records: Records) -> list[str]:
    lines = []
    by_stage: dict[str, list[str]] = {}
    for stage, case, error in records.failed():
        if error != NO_TIME:
            by_stage.setdefault(stage, []).append(f"{case}: {error}")
    for stage, found in by_stage.items():
        lines.append(f"{stage}: {len(found)} failed")
        lines += [f"  {line}" for line in found[:SEVERAL]]
    late = [case for _, case, error in records.failed() if error == NO_TIME]
    if late:
        lines.append(f"no time was left for {len(late)}, the first of them {late[0]}")
    return lines or ["nothing failed"]


def plain(results: dict[str, dict[str, Any]]) -> list[str]:
    """Whatever a case came to."""
    hidden = "wall", "hits", "misses", "broken"
    lines = []
    for case, result in results.items():
        said = [f"{name} {value}" for name, value in result.items() if name not in hidden]
        lines.append(f"{case}: {', '.join(said) or 'went well'}")
    return lines


SECTIONS = {
    "kernels": kernels,
    "ceilings": ceilings,
    "goals": lambda results: goals(results, (*GOALS, *SEARCHES), "ours"),
    "candidates": candidates,
    "tests": tests,
    "small": small,
    "huge": lambda results: goals(results, (HUGE,), "ours"),
    "rivals": rivals,
    "uses": plain,
    "sanitizer": plain,
}


def diagnose(records: Records) -> str:
    """At most ``MOST`` characters; where that is too little, lines are cut and then left out."""
    lines = machine(records)
    for stage, section in SECTIONS.items():
        if stage in records.results and (found := section(records.results[stage])):
            lines += ["", f"[{stage}]", *found]
    tail = ["", "[failures]", *failures(records)]
    lines, tail = ([line[: 3 * WIDTH] for line in part] for part in (lines, tail))
    if sum(len(x) + 1 for x in (*lines, *tail)) > MOST:
        lines, tail = ([line[:WIDTH] for line in part] for part in (lines, tail))
    text = "\n".join(tail)[: MOST // 2]
    head = "\n".join(lines)
    return (head if len(head) + len(text) < MOST else head[: MOST - len(text) - 1]) + "\n" + text
