"""How well features separate classes that training never saw the names of."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from examples.simclr.data import as_float
from examples.simclr.model import SimCLR

SHOTS = (1, 5)
DRAWS = 20


class Score(NamedTuple):
    """A mean, and its standard deviation over draws where there are several."""

    mean: float
    std: float | None = None


def single_thread() -> threadpool_limits:
    """For scikit-learn on few points: there a second thread mostly waits, and waits busily."""
    return threadpool_limits(limits=1)


@torch.no_grad()
def encode(model: SimCLR, images: Tensor, batch_size: int = 1024) -> Tensor:
    """Features of the encoder without the head, shape [N, features], on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    batches = images.split(batch_size)
    return torch.cat([model.encoder(as_float(batch.to(device))).cpu() for batch in batches])


def evaluate(features: Tensor, labels: Tensor) -> dict[str, Score]:
    """Retrieval and few-shot scores of ``features`` [N, F]; only directions count, not lengths."""
    unit = F.normalize(features.flatten(1).float(), dim=1)
    precision, recall = retrieval(unit, labels)
    scores = {"mAP": Score(precision), "recall@1": Score(recall)}
    for shots in SHOTS:
        scores[f"{shots}-shot probe"] = linear_probe(unit, labels, shots)
    return scores


def retrieval(unit: Tensor, labels: Tensor, chunk: int = 1024) -> tuple[float, float]:
    """Mean average precision and recall@1, each image in turn the query for all others.

    Others are ranked by cosine; those of the query's label are relevant. A query without any
    is left out.

    Args:
        unit: Unit vectors, shape [N, F].
        labels: Shape [N].
        chunk: Queries ranked at a time.
    """
    total_precision = total_recall = 0.0
    queries = 0
    rank = torch.arange(1, len(unit))  # [N - 1]
    for start in range(0, len(unit), chunk):
        stop = min(start + chunk, len(unit))
        cosine = unit[start:stop] @ unit.T  # [chunk, N]
        cosine[torch.arange(stop - start), torch.arange(start, stop)] = -torch.inf
        ranked = cosine.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = (labels[ranked] == labels[start:stop, None]).float()  # [chunk, N - 1]
        count = relevant.sum(1)
        answerable = count > 0
        precision = (relevant.cumsum(1) / rank * relevant).sum(1) / count
        total_precision += precision[answerable].double().sum().item()
        total_recall += relevant[answerable, 0].double().sum().item()
        queries += int(answerable.sum())
    if queries == 0:
        raise ValueError("no two images share a label: nothing can be retrieved")
    return total_precision / queries, total_recall / queries


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
