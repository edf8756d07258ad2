"""Pictures of retrieval across fonts."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from cl_kernels import PairFilter, topk
from examples.common.images.data import Images
from examples.common.images.evaluate import font_retrieval

QUERIES, FOUND = 10, 8
MARGINS = {"left": 0.03, "right": 0.97, "bottom": 0.03, "top": 0.9, "wspace": 0.1, "hspace": 0.1}


def plot_fonts(features: Tensor, images: Images, path: Path) -> None:
    """Recall@1 for each font of the queries and of the gallery."""
    assert images.heldout_fonts is not None
    unit = F.normalize(features.flatten(1), dim=1)
    table = font_retrieval(unit, images.heldout_labels, images.heldout_fonts)["recall@1"]
    figure, axes = plt.subplots(figsize=(8, 7), layout="constrained")
    shown = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
    ticks = range(len(images.fonts))
    axes.set_xticks(ticks, images.fonts, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(ticks, images.fonts, fontsize=8)
    axes.set_xlabel("font of the gallery")
    axes.set_ylabel("font of the query")
    axes.set_title("Held-out characters: recall@1 across fonts")
    figure.colorbar(shown, shrink=0.8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_neighbours(features: dict[str, Tensor], images: Images, path: Path) -> None:
    """Some queries, and what each kind of features finds in the other fonts; errors are framed."""
    assert images.heldout_fonts is not None
    generator = torch.Generator().manual_seed(0)
    queries = torch.randperm(len(images.heldout), generator=generator)[:QUERIES]
    size = 0.42  # inches a glyph
    figure = plt.figure(figsize=(len(features) * (FOUND + 1.5) * size, (QUERIES + 1) * size))
    fonts = images.heldout_fonts
    other_fonts = PairFilter(fonts[queries], fonts, "different")
    panels = np.atleast_1d(np.asarray(figure.subfigures(1, len(features))))
    for panel, (title, vectors) in zip(panels, features.items(), strict=True):
        columns = panel.subplots(QUERIES, FOUND + 1, gridspec_kw=MARGINS)
        panel.suptitle(title, fontsize=10)
        flat = vectors.flatten(1)
        found = topk(flat[queries], flat, FOUND, where=other_fonts).indices
        for row, query in enumerate(queries):
            _show(columns[row, 0], images.heldout[query], "tab:blue")
            for place, index in enumerate(found[row]):
                right = images.heldout_labels[index] == images.heldout_labels[query]
                _show(columns[row, place + 1], images.heldout[index], None if right else "tab:red")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _show(axes: Axes, image: Tensor, frame: str | None) -> None:
    axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(2)
