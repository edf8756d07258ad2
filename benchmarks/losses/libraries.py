"""What people call instead: the classes of other libraries for a loss of the family, with the
settings of its plain case."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from catalogue.family.case import Arguments

METRIC_LEARNING, SENTENCES, LIGHTLY = (
    "pytorch_metric_learning",
    "sentence_transformers",
    "lightly",
)

Called = tuple[Callable[[], Tensor], list[Tensor]]  # a loss, and what is trained


class Library(NamedTuple):
    """Whose class stands for a loss, and how it is called with the loss's arguments."""

    package: str
    call: Callable[[Arguments], Called]


def contestant(loss: str, arguments: Arguments) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward of another library's class."""
    called, trained = LIBRARIES[loss].call(arguments)
    return lambda: torch.autograd.grad(called(), trained, materialize_grads=True)


def installed(loss: str) -> str | None:
    """Whose class stands for the loss here."""
    found = LIBRARIES.get(loss)
    if found is None or find_spec(found.package) is None:
        return None
    if found.package == LIGHTLY and find_spec("torchvision") is None:  # which it imports
        return None
    return found.package


def missing() -> list[str]:
    """Packages whose classes are not timed here."""
    packages = {library.package: installed(loss) for loss, library in LIBRARIES.items()}
    return [package for package, found in packages.items() if found is None]


def _of_labels(name: str, **settings: Any) -> Library:
    """A loss of pytorch-metric-learning; ``cosine``: of cosines instead of distances."""

    def call(arguments: Arguments) -> Called:
        given = dict(settings)
        if given.pop("cosine", False):
            distances = import_module(f"{METRIC_LEARNING}.distances")
            given["distance"] = distances.CosineSimilarity()
        loss = getattr(import_module(f"{METRIC_LEARNING}.losses"), name)(**given)
        x, labels = arguments["x"], arguments["labels"]
        return lambda: loss(x, labels), [x]

    return Library(METRIC_LEARNING, call)


def _of_classes(
    name: str, weight: str, labels: str, parameter: str, turned: bool, **settings: Any
) -> Library:
    """One that learns a row (``turned``: a column) for each class."""

    def call(arguments: Arguments) -> Called:
        x, rows = arguments["x"], arguments[weight].detach()
        loss = getattr(import_module(f"{METRIC_LEARNING}.losses"), name)(*rows.shape, **settings)
        learned = nn.Parameter((rows.T if turned else rows).contiguous())
        setattr(loss, parameter, learned)
        return lambda: loss(x, arguments[labels]), [x, learned]

    return Library(METRIC_LEARNING, call)


class _Embedded(nn.Module):
    """Stands for a model whose embeddings are there."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


def _of_texts(name: str, *columns: str, target: str | None = None, **settings: Any) -> Library:
    """A loss of sentence-transformers."""

    def call(arguments: Arguments) -> Called:
        losses = import_module(f"{SENTENCES}.sentence_transformer.losses")
        loss: Any = getattr(losses, name)(_Embedded(), **settings)
        rows = [arguments[column] for column in columns]
        labels = torch.empty(0) if target is None else arguments[target].detach()
        return lambda: loss([{"sentence_embedding": x} for x in rows], labels), rows

    return Library(SENTENCES, call)


def _of_views(name: str, *columns: str, detached: bool = False, **settings: Any) -> Library:
    """A loss of lightly; ``detached``: the second view is not trained."""

    def call(arguments: Arguments) -> Called:
        loss = getattr(import_module(f"{LIGHTLY}.loss"), name)(**settings)
        first, second = (arguments[column] for column in columns)
        if detached:
            return lambda: loss(first, second.detach()), [first, second]
        return lambda: loss(first, second), [first, second]

    return Library(LIGHTLY, call)


LIBRARIES = {
    "supcon": _of_labels("SupConLoss", temperature=0.1),
    "multi_similarity": _of_labels("MultiSimilarityLoss"),
    "triplet": _of_labels("TripletMarginLoss", margin=0.2, cosine=True),
    "pairwise_contrastive": _of_labels(
        "ContrastiveLoss", pos_margin=1, neg_margin=0.5, cosine=True
    ),
    "proxy_anchor": _of_classes("ProxyAnchorLoss", "proxies", "labels", "proxies", False),
    "arcface": _of_classes("ArcFaceLoss", "weight", "target", "W", True, margin=math.degrees(0.5)),
    "cosface": _of_classes("CosFaceLoss", "weight", "target", "W", True),
    "normalized_softmax": _of_classes("NormalizedSoftmaxLoss", "weight", "target", "W", True),
    "multiple_negatives_ranking": _of_texts(
        "MultipleNegativesRankingLoss", "anchors", "candidates"
    ),
    "mega_batch_margin": _of_texts(
        "MegaBatchMarginLoss", "anchors", "positives", use_mini_batched_version=False
    ),
    "cosent": _of_texts("CoSENTLoss", "first", "second", target="similarity"),
    "angle": _of_texts("AnglELoss", "first", "second", target="similarity"),
    "margin_mse": _of_texts(
        "MarginMSELoss", "query", "positive", "negatives", target="teacher_margin"
    ),
    "decoupled": _of_views("DCLLoss", "view_0", "view_1"),
    "weighted_decoupled": _of_views("DCLWLoss", "view_0", "view_1"),
    "vicreg": _of_views("VICRegLoss", "first", "second"),
    "barlow_twins": _of_views("BarlowTwinsLoss", "first", "second"),
    "negative_cosine": _of_views("NegativeCosineSimilarity", "prediction", "target", detached=True),
}
