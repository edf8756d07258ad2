"""Loss and retrieval of each epoch, and held-out pairs in the plane."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from examples.sbert.evaluate import METRICS, Scores
from examples.sbert.train import Trainer

PAIRS = 400  # more would hide one another
NAMED = 9  # sources with a colour of their own
OTHERS = (0.6, 0.6, 0.6)


def plot_training(trainer: Trainer, baseline: Scores, path: Path) -> None:
    """Loss of each epoch, and held-out retrieval after it beside TF-IDF's."""
    epochs = np.arange(1, trainer.epoch + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    losses = [epoch["loss"] for epoch in trainer.history]
    left.plot(epochs, losses, marker="o", markersize=3, label="InfoNCE")
    left.set_ylabel("mean loss of the epoch")
    left.set_title(f"Training, {trainer.config.batch_size} pairs a batch")
    left.set_ylim(bottom=0)
    curve = [trainer.before, *trainer.history]
    for index, name in enumerate(METRICS):
        values = [epoch[name] for epoch in curve]
        right.plot([0, *epochs], values, marker="o", markersize=3, color=f"C{index}", label=name)
        right.axhline(baseline[name], color=f"C{index}", linestyle=":", linewidth=1)
    right.plot([], [], color="gray", linestyle=":", label="TF-IDF")
    right.set_title("Held-out retrieval")
    right.set_ylim(0, 1)
    for axes in (left, right):
        if 0 < trainer.config.epochs < trainer.epochs:
            stage = trainer.config.epochs + 0.5, trainer.epochs + 0.5
            axes.axvspan(*stage, alpha=0.08, color="k", linewidth=0, label="mined negatives")
        axes.legend(frameon=False, fontsize="small", ncols=2)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_embeddings(
    panels: dict[str, tuple[Tensor, Tensor]], places: list[str], path: Path
) -> None:
    """t-SNE of queries and documents together; a line joins each pair.

    Args:
        panels: Unit vectors of queries and of documents, [N, dim] each, by title.
        places: ``module:line`` of each pair; coloured by the first name of it.
    """
    shown = np.random.default_rng(0).permutation(len(places))[:PAIRS]
    sources = np.array([place.split(":")[0].split(".")[0] for place in places])[shown]
    common, counts = np.unique(sources, return_counts=True)
    named = common[np.argsort(-counts, kind="stable")][:NAMED]
    colours = dict(zip(named, plt.get_cmap("tab10").colors, strict=False))  # type: ignore
    of_pair = [colours.get(source, OTHERS) for source in sources]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 5.6), layout="constrained"
    )
    for axes, (title, sides) in zip(np.atleast_1d(all_axes), panels.items(), strict=True):
        queries, documents = np.split(_plane(np.concatenate([s.numpy()[shown] for s in sides])), 2)
        for query, document, colour in zip(queries, documents, of_pair, strict=True):
            axes.plot(*np.stack([query, document]).T, color=colour, alpha=0.35, linewidth=0.6)
        axes.scatter(*queries.T, s=10, c=of_pair, marker="x", linewidths=0.8)
        axes.scatter(*documents.T, s=10, c=of_pair, marker="o", linewidths=0)
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_box_aspect(1)
    if len(named) < len(common):
        colours["others"] = OTHERS
    handles = [Line2D([], [], color=c, marker="o", ls="", label=n) for n, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"{len(shown)} held-out pairs by t-SNE: queries (x) joined to their documents")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plane(vectors: np.ndarray) -> np.ndarray:
    perplexity = min(30, (len(vectors) - 1) / 3)
    # On few points a second thread mostly waits, and waits busily.
    with threadpool_limits(limits=1):
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)
