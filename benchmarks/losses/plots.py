"""Time and memory against batch size, log-log, a panel for each loss and primitive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.losses.cases import NAMES, PLOTTED_WIDTH, Case
from benchmarks.losses.report import by_case
from benchmarks.memory import MEGABYTE

STYLES: dict[str, dict[str, Any]] = {
    "cl_kernels": {"color": "#0b6e99", "marker": "o", "linewidth": 2},
    "eager PyTorch": {"color": "#d1603d", "marker": "s", "linewidth": 2},
    "bare product": {"color": "#6b6b6b", "marker": ".", "linestyle": "--", "linewidth": 1.3},
    "the matrix alone": {"color": "#6b6b6b", "linestyle": ":", "linewidth": 1.5},
    "our limit": {"color": "#0b6e99", "linestyle": ":", "linewidth": 1.5},
}
LEAST_MEGABYTES = 0.1  # what is below the measurement's resolution is drawn here

Curves = dict[str, dict[int, float]]  # label -> rows -> value


def time_curves(cases: dict[Case, dict[str, Any]]) -> Curves:
    curves: Curves = {}
    for case, entry in cases.items():
        for rival, label in (("product", "bare product"), ("eager", "eager PyTorch")):
            if rival in entry:
                curves.setdefault(label, {})[case.rows] = 1e3 * entry[rival]["rival_seconds"]
                ours = 1e3 * entry[rival]["ours_seconds"]
                curves.setdefault("cl_kernels", {})[case.rows] = ours
    return curves


def memory_curves(cases: dict[Case, dict[str, Any]]) -> Curves:
    labels = {"ours": "cl_kernels", "eager": "eager PyTorch"}
    labels |= {"matrix": "the matrix alone", "limit": "our limit"}
    curves: Curves = {}
    for case, entry in cases.items():
        for field in labels.keys() & entry.keys():
            megabytes = max(entry[field] / MEGABYTE, LEAST_MEGABYTES)
            curves.setdefault(labels[field], {})[case.rows] = megabytes
    return curves


def _draw(
    summary: dict[str, Any],
    what: str,
    curves_of: Callable[[dict[Case, dict[str, Any]]], Curves],
    ylabel: str,
    path: Path,
) -> bool:
    cases = {c: e for c, e in by_case(summary[what]).items() if c.width == PLOTTED_WIDTH}
    names = [name for name in NAMES if any(case.name == name for case in cases)]
    if not names:
        return False
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(1.6 + 3.4 * columns, 1.3 + 3 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    handles = {}
    for name, axis in zip(names, axes.flat, strict=False):
        curves = curves_of({c: e for c, e in cases.items() if c.name == name})
        for label in STYLES:
            if points := sorted(curves.get(label, {}).items()):
                handles[label] = axis.loglog(*zip(*points, strict=True), **STYLES[label])[0]
        axis.set_title(name, fontfamily="monospace", fontsize=11)
        axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    ticks = sorted({case.rows for case in cases})
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks[:: 1 + len(ticks) // 8])
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axis.tick_params(axis="x", rotation=45)
    for axis in axes[-1]:
        axis.set_xlabel("rows of the similarity matrix")
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    machine = summary["machine"]
    figure.suptitle(
        f"Forward + backward, float32, D = {PLOTTED_WIDTH}: "
        f"{machine['device']}, {machine['threads']} threads",
        fontsize=11,
    )
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles),
        frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def draw(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Writes ``time.png`` and ``memory.png`` and returns those there was data for."""
    time, memory = folder / "time.png", folder / "memory.png"
    drawn = []
    if _draw(summary, "time", time_curves, "milliseconds", time):
        drawn.append(time)
    if _draw(summary, "memory", memory_curves, "peak extra memory, MB", memory):
        drawn.append(memory)
    return drawn
