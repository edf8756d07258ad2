"""How well features separate classes that training never saw the names of."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from cl_kernels.evaluation import knn_accuracy, label_relevance, retrieval_metrics
from examples.common.images.data import Images, as_float
from examples.common.images.networks import Tower

SHOTS = (1, 5)
DRAWS = 20
ACROSS_FONTS = ("mAP", "recall@1")  # what is scored where images differ by font
NEIGHBOURS = 10  # that vote in the monitor


class Score(NamedTuple):
    """A mean, and its standard deviation over draws where there are several."""

    mean: float
    std: float | None = None


def single_thread() -> threadpool_limits:
    """For scikit-learn on few points: there a second thread mostly waits, and waits busily."""
    return threadpool_limits(limits=1)


@torch.no_grad()
def encode(model: Tower, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Features of the encoder without the head, shape [N, features], on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    batches = images.split(batch_size)
    return torch.cat([model.encoder(as_float(batch.to(device))).cpu() for batch in batches])


def evaluate(features: Tensor, images: Images) -> dict[str, Score]:
    """Scores of held-out ``features`` [N, F]; only directions count, not lengths.

    Retrieval and few-shot probes; across fonts, where images differ by font.
    """
    unit, labels = F.normalize(features.flatten(1).float(), dim=1), images.heldout_labels
    if images.heldout_fonts is not None:
        across = font_retrieval(unit, labels, images.heldout_fonts)
        return {metric: Score(float(table.nanmean())) for metric, table in across.items()}
    precision, recall = retrieval(unit, labels)
    scores = {"mAP": Score(precision), "recall@1": Score(recall)}
    for shots in SHOTS:
        scores[f"{shots}-shot probe"] = linear_probe(unit, labels, shots)
    return scores


def retrieval(unit: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean average precision and recall@1, each image in turn the query for all others.

    Others are ranked by cosine; those of the query's label are relevant. A query without any
    is left out.

    Args:
        unit: Unit vectors, shape [N, F].
        labels: Shape [N].
    """
    relevant = label_relevance(labels, labels)
    found = retrieval_metrics(unit, unit, relevant, at=(1,), exclude_self=True)
    return found["map"], found["hit@1"]


def font_retrieval(unit: Tensor, labels: Tensor, fonts: Tensor) -> dict[str, Tensor]:
    """Tables of mAP and recall@1, [query font, gallery font]; NaN on the diagonal.

    Every image of one font is a query for all images of the other.
    """
    count = int(fonts.max()) + 1
    tables = {name: torch.full((count, count), torch.nan) for name in ACROSS_FONTS}
    for gallery in range(count):
        key, query = fonts == gallery, fonts != gallery
        relevant = label_relevance(labels[query], labels[key])
        found = retrieval_metrics(unit[query], unit[key], relevant, at=(1,)).per_query
        for font in set(range(count)) - {gallery}:
            of_font = fonts[query] == font
            tables["mAP"][font, gallery] = found["map"][of_font].nanmean()
            tables["recall@1"][font, gallery] = found["hit@1"][of_font].nanmean()
    return tables


def monitor(model: Tower, images: Images) -> dict[str, float]:
    """What can be watched during training: k-NN and linear probe on held-out images."""
    unit = F.normalize(encode(model, images.heldout), dim=1)
    labels = images.heldout_labels
    with warnings.catch_warnings():  # some glyphs are drawn alike by several fonts
        warnings.filterwarnings("ignore", "k: neighbour")
        accuracy = knn_accuracy(unit, labels, k=NEIGHBOURS)
    return {
        "k-NN accuracy": accuracy,
        "linear probe": linear_probe(unit, labels, shots=max(SHOTS), draws=1).mean,
    }


def linear_probe(unit: Tensor, labels: Tensor, shots: int, draws: int = DRAWS) -> Score:
    """Accuracy of logistic regression on ``shots`` labelled images a class, on all the others.

    Draw ``i`` is seeded with ``i``: every set of features gets the same images.
    """
    x, y = unit.numpy(), labels.numpy()
    accuracies = []
    for draw in range(draws):
        random = np.random.default_rng(draw)
        taken = np.concatenate(
            [random.choice(np.flatnonzero(y == c), shots, replace=False) for c in np.unique(y)]
        )
        rest = np.setdiff1d(np.arange(len(y)), taken)
        with single_thread():
            probe = LogisticRegression(C=10.0, max_iter=1000).fit(x[taken], y[taken])
            accuracies.append(probe.score(x[rest], y[rest]))
    return Score(float(np.mean(accuracies)), float(np.std(accuracies)))
