"""The loss curve, what the monitors saw, and held-out features in the plane."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor

from examples.common.images.data import Images
from examples.common.images.evaluate import single_thread
from examples.common.images.memory import LossFacts
from examples.common.images.plots_fonts import plot_fonts, plot_neighbours
from examples.common.images.train import Trainer

POINTS = 2000  # more would hide one another, and t-SNE is slow
CLASSES = 20  # colours that can be told apart


def draw_all(
    trainer: Trainer, loss: LossFacts, features: dict[str, Tensor], images: Images, folder: Path
) -> list[Path]:
    """Writes the pictures of a run and gives their paths.

    Args:
        features: Held-out features [N, F] by name, the trained ones last.
    """
    paths = [folder / "loss.png", folder / "embeddings.png"]
    plot_loss(trainer, loss, paths[0])
    plot_embeddings(features, images.heldout_labels, images.classes, paths[1])
    if any("linear probe" in epoch for epoch in trainer.history):
        paths.append(folder / "monitors.png")
        plot_monitors(trainer.history, paths[-1])
    if images.heldout_fonts is not None:
        trained = list(features.values())[-1]
        paths += [folder / "fonts.png", folder / "neighbours.png"]
        plot_fonts(trained, images, paths[-2])
        plot_neighbours(features, images, paths[-1])
    return paths


def plot_loss(trainer: Trainer, facts: LossFacts, path: Path) -> None:
    """Loss and learning rate of each epoch."""
    history = trainer.history
    epochs = range(1, len(history) + 1)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, height_ratios=[3, 1], layout="constrained"
    )
    loss = [epoch["loss"] for epoch in history]
    upper.plot(epochs, loss, color="tab:blue", label=facts.name)
    upper.axhline(facts.all_alike, color="gray", linestyle="--", label="all embeddings alike")
    upper.set_ylabel("mean loss of the epoch")
    upper.set_title(f"Training, {trainer.config.batch_size} pairs a batch")
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


def plot_monitors(history: list[dict[str, float]], path: Path) -> None:
    """Accuracies of the held-out monitors, and the health of the training embeddings."""
    names = ("std", "effective_rank", "alignment", "uniformity")
    figure, all_axes = plt.subplots(1, 1 + len(names), figsize=(15, 3), layout="constrained")
    epochs = range(1, len(history) + 1)
    for name in ("k-NN accuracy", "linear probe"):
        seen = [(i, epoch[name]) for i, epoch in zip(epochs, history, strict=True) if name in epoch]
        all_axes[0].plot(*zip(*seen, strict=True), marker="o", markersize=3, label=name)
    all_axes[0].set_title("held-out accuracy")
    all_axes[0].legend(frameon=False)
    for axes, name in zip(all_axes[1:], names, strict=True):
        axes.plot(epochs, [epoch[name] for epoch in history], color="tab:green")
        axes.set_title(name.replace("_", " "))
    for axes in all_axes:
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_embeddings(
    panels: dict[str, Tensor], labels: Tensor, classes: list[str], path: Path
) -> None:
    """t-SNE of each panel's features [N, F], coloured by the labels that training never saw."""
    if len(classes) > CLASSES:  # evenly spread ones
        kept = torch.linspace(0, len(classes) - 1, CLASSES).long()
        classes = [classes[i] for i in kept]
        rows = torch.isin(labels, kept)
        panels = {title: features[rows] for title, features in panels.items()}
        labels = torch.searchsorted(kept, labels[rows])
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
        handles,
        texts,
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
