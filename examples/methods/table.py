"""The results as a table, and as pictures."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from examples.common.images.memory import show_size
from examples.methods.catalogue import METHODS

Results = dict[str, dict[str, Any]]  # method -> what its run returned

COLUMNS = (
    "", "loss", "linear probe", "k-NN", "mAP", "memory", "s a step", "std", "rank", "feature rank",
    "collapsed",
)  # fmt: skip
SCORES = ("probe", "k-NN", "mAP")
MARKERS = ("o", "s", "D")


def markdown(results: dict[str, Results]) -> str:
    """A table for each data set."""
    return "\n\n".join(f"{_title(data, of)}\n\n{_table(of)}" for data, of in results.items())


def _title(data: str, results: Results) -> str:
    first = next(iter(results.values()))
    settings, machine = first["settings"], first["machine"]
    return (
        f"**{data}**: {first['steps']} steps of {settings['batch_size']} pairs, "
        f"{settings['training_images'][0]:,} training images ({machine['processor']}, "
        f"{machine['threads']} threads on {machine['cpu_cores']} cores, torch {machine['torch']})"
    )


def _table(results: Results) -> str:
    rows = [COLUMNS, *map(_row, results, results.values()), _untrained(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    method, health = METHODS[name], result["health"]
    features, embeddings = health["features"], health["embeddings"]
    peak = result["peak_bytes"]
    return (
        method.title,
        f"`{method.loss}`",
        *(f"{result['scores'][score]:.3f}" for score in SCORES),
        "not measured" if peak is None else show_size(peak),
        f"{result['seconds_a_step']:.3f}",
        f"{embeddings['std']:.2f}",
        f"{embeddings['effective_rank']:.1f} of {health['width']}",
        f"{features['effective_rank']:.1f}",
        "yes" if health["collapsed"] else "no",
    )


def _untrained(results: Results) -> tuple[str, ...]:
    scores = next(iter(results.values()))["untrained"]
    row = ["untrained", "", *(f"{scores[score]:.3f}" for score in SCORES)]
    return (*row, *[""] * (len(COLUMNS) - len(row)))


def plot(results: dict[str, Results], path: Path) -> None:
    """For each data set the scores of all methods, and how the embeddings' rank went."""
    figure, rows = plt.subplots(
        len(results), 2, figsize=(9, 3.2 * len(results)), squeeze=False, layout="constrained"
    )
    for (data, of), (left, right) in zip(results.items(), rows, strict=True):
        _plot_scores(left, data, of)
        _plot_ranks(right, data, of)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _plot_scores(axes: Axes, data: str, results: Results) -> None:
    places = range(len(results))
    untrained = next(iter(results.values()))["untrained"]
    for score, marker in zip(SCORES, MARKERS, strict=True):
        values = [result["scores"][score] for result in results.values()]
        (drawn,) = axes.plot(values, places, marker, label=score, markersize=5)
        axes.axvline(untrained[score], color=drawn.get_color(), linestyle=":", linewidth=1)
    axes.set_yticks(places, [METHODS[name].title for name in results])
    axes.invert_yaxis()
    axes.set_xlim(right=1.01)
    axes.set_title(f"{data}: held-out scores (dotted: untrained)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _plot_ranks(axes: Axes, data: str, results: Results) -> None:
    colours = plt.get_cmap("tab10")
    for index, (name, result) in enumerate(results.items()):
        history = result["history"]
        epochs = [i * result["steps"] / len(history) for i in range(1, len(history) + 1)]
        shares = [epoch["effective_rank"] / result["health"]["width"] for epoch in history]
        style = {"color": colours(index), "marker": "." if len(history) < 10 else ""}
        axes.plot(epochs, shares, label=METHODS[name].title, linewidth=1.2, **style)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("step")
    axes.set_title(f"{data}: effective rank / width, in training", fontsize=10)
    axes.legend(frameon=False, fontsize=7, ncols=2)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
