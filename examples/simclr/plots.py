"""The loss curve, and held-out features in the plane."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.manifold import TSNE
from torch import Tensor

from examples.simclr.evaluate import single_thread

POINTS = 2000  # more would hide one another, and t-SNE is slow


def plot_loss(history: list[dict[str, float]], batch_size: int, path: Path) -> None:
    """Loss and learning rate of each epoch."""
    epochs = range(1, len(history) + 1)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    upper.plot(epochs, [epoch["loss"] for epoch in history], color="tab:blue", label="NT-Xent")
    upper.axhline(
        math.log(2 * batch_size - 1),
        color="gray",
        linestyle="--",
        label="all embeddings alike",
    )
    upper.set_ylabel("mean loss of the epoch")
    upper.set_title(f"Training, {batch_size} pairs a batch")
    upper.legend(frameon=False)
    lower.plot(epochs, [epoch["learning_rate"] for epoch in history], color="tab:orange")
    lower.set_ylabel("learning rate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_embeddings(
    panels: dict[str, Tensor], labels: Tensor, classes: list[str], path: Path
) -> None:
    """t-SNE of each panel's features [N, F], coloured by the labels that training never saw."""
    # All points where there are few, else the same random ones in each panel.
    shown = np.random.default_rng(0).permutation(len(labels))[:POINTS]
    names = labels.numpy()[shown]
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4.8), layout="constrained"
    )
    for axes, (title, features) in zip(np.atleast_1d(all_axes), panels.items(), strict=True):
        points = _plane(features.flatten(1).numpy()[shown])
        for index, name in enumerate(classes):
            of_class = points[names == index]
            axes.scatter(*of_class.T, s=9, color=colours(index % colours.N), label=name)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(1)
    handles, texts = np.atleast_1d(all_axes)[0].get_legend_handles_labels()
    figure.legend(
        handles[:20],
        texts[:20],
        loc="outside lower center",
        ncols=10,
        frameon=False,
        markerscale=2.5,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    figure.suptitle("Held-out images by t-SNE of their features (cosine distance)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plane(features: np.ndarray) -> np.ndarray:
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    perplexity = min(30, (len(unit) - 1) / 3)
    # Euclidean distance between unit vectors orders pairs as the cosine does.
    with single_thread():
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit)
