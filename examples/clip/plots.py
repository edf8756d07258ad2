"""The loss of each step, and queries with their best answers."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from cl_kernels import topk
from examples.clip.data import TESTS, Data
from examples.clip.evaluate import Embedded
from examples.clip.index import OF_EACH, Hit

QUERIES = 4  # of each test and direction
PICTURES, NAMES = 8, 3  # answers shown
RIGHT, WRONG, ASKED = "tab:green", "tab:red", "tab:blue"


def plot_training(
    losses: list[float], history: list[dict[str, float]], title: str, path: Path
) -> None:
    """Loss of each step; scale of the logits after each epoch."""
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    upper.plot(range(1, len(losses) + 1), losses, color="tab:blue", linewidth=1)
    upper.set_ylabel("loss")
    upper.set_title(title)
    upper.set_ylim(bottom=0)
    each = len(losses) // len(history)
    steps = [each * (epoch + 1) for epoch in range(len(history))]
    lower.plot(steps, [epoch["scale"] for epoch in history], ".-", color="tab:orange")
    lower.set_ylabel("learned scale")
    lower.set_ylim(0, 1.15 * max(epoch["scale"] for epoch in history))
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_answers(data: Data, vectors: Embedded, path: Path) -> None:
    """Left: names and the pictures that they find among all held-out ones. Right: pictures and the
    names that they find among all. Right answers are green, others red.
    """
    rows = QUERIES * len(TESTS)
    figure = plt.figure(figsize=(14, 0.62 * rows + 0.5), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1.15, 1]))
    left.suptitle("name -> held-out pictures (green: right, red: wrong)")
    right.suptitle("held-out picture -> names (green: right, red: wrong)")
    _name_to_pictures(
        data, vectors, left.subplots(rows, PICTURES + 1, width_ratios=[6] + [1] * PICTURES)
    )
    _picture_to_names(data, vectors, right.subplots(rows, 2, width_ratios=[1, 9]))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _name_to_pictures(data: Data, vectors: Embedded, cells: Sequence[Sequence[Axes]]) -> None:
    groups = data.glyphs.groups
    pixels = torch.cat([data.of(part).pixels for part in TESTS])
    of_picture = groups[torch.cat([data.of(part).characters for part in TESTS])]
    pictures = torch.cat([vectors.pictures[part] for part in TESTS])
    asked = torch.cat([_some(data.of(part).characters.unique(), part) for part in TESTS])
    found = topk(vectors.names[asked], pictures, PICTURES, normalize=False).indices
    for row, character, best in zip(cells, asked.tolist(), found, strict=True):
        _write(row[0], [(data.glyphs.names[character], "black")])
        for axes, picture in zip(row[1:], best.tolist(), strict=True):
            right = bool(of_picture[picture] == groups[character])
            _show(axes, pixels[picture], RIGHT if right else WRONG)


def _picture_to_names(data: Data, vectors: Embedded, cells: Sequence[Sequence[Axes]]) -> None:
    groups, start = data.glyphs.groups, 0
    choices = torch.cat([data.known(), data.unseen()])
    for part in TESTS:
        pictures = data.of(part)
        asked = _some(torch.arange(len(pictures.pixels)), part)
        found = topk(vectors.pictures[part][asked], vectors.names[choices], NAMES, normalize=False)
        for row, picture, best in zip(cells[start:], asked.tolist(), found.indices, strict=False):
            _show(row[0], pictures.pixels[picture], ASKED)
            named, wanted = choices[best].tolist(), groups[pictures.characters[picture]]
            _write(row[1], [
                (data.glyphs.names[c], RIGHT if groups[c] == wanted else WRONG) for c in named
            ])  # fmt: skip
        start += len(asked)


def plot_hits(question: str, hits: list[Hit], path: Path) -> None:
    """A row for each character: its name, score and best pictures."""
    figure, cells = plt.subplots(
        len(hits), OF_EACH + 1, figsize=(9, 0.62 * len(hits) + 0.6), squeeze=False,
        width_ratios=[5] + [1] * OF_EACH, layout="constrained",
    )  # fmt: skip
    figure.suptitle(_plain(question), parse_math=False)
    for row, hit in zip(cells, hits, strict=True):
        _write(row[0], [(f"{hit.score:.3f}  U+{hit.code:04X}", "gray"), (hit.name, "black")])
        for axes in row[1:]:
            axes.axis("off")
        for axes, picture in zip(row[1:], hit.pictures, strict=False):
            axes.axis("on")
            _show(axes, picture, "lightgray")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plain(text: str, most: int = 80) -> str:
    """What fonts can draw, in one line."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _some(x: Tensor, part: str) -> Tensor:
    """A few for a test, always the same."""
    generator = torch.Generator().manual_seed(list(TESTS).index(part))
    return x[torch.randperm(len(x), generator=generator)[:QUERIES]]


def _show(axes: Axes, picture: Tensor, frame: str) -> None:
    axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(frame)
        spine.set_linewidth(1.5)


def _write(axes: Axes, lines: list[tuple[str, str]]) -> None:
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for line, (text, colour) in enumerate(lines):
        at = 0.5 + 0.3 * ((len(lines) - 1) / 2 - line)
        wrapped = "\n".join(textwrap.wrap(text, 36)) if len(lines) == 1 else text
        axes.text(0, at, wrapped, color=colour, fontsize=6.5, va="center")
