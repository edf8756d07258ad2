"""What a trained method is judged by, on images and labels that training never saw."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl_kernels.evaluation import knn_accuracy
from examples.common.images.collapse import embedding_health, warning
from examples.common.images.data import Images, as_float
from examples.common.images.evaluate import (
    NEIGHBOURS,
    encode,
    font_retrieval,
    linear_probe,
    retrieval,
)
from examples.common.images.groups import Partners
from examples.common.images.networks import Tower

SHOTS, DRAWS = 5, 5
WATCHED = 1000  # held-out images whose views are looked at for collapse


def score(model: Tower, images: Images) -> dict[str, float]:
    """Probe, k-NN and mAP of the encoder's features of held-out images."""
    unit, labels = F.normalize(encode(model, images.heldout), dim=1), images.heldout_labels
    if images.heldout_fonts is None:
        precision = retrieval(unit, labels)[0]
    else:
        precision = float(font_retrieval(unit, labels, images.heldout_fonts)["mAP"].nanmean())
    with warnings.catch_warnings():  # images drawn alike, or features that have collapsed
        warnings.filterwarnings("ignore", "k: neighbour")
        neighbours = knn_accuracy(unit, labels, k=NEIGHBOURS)
    probe = linear_probe(unit, labels, SHOTS, DRAWS).mean
    return {"probe": probe, "k-NN": neighbours, "mAP": precision}


@torch.no_grad()
def health(model: Tower, images: Images, augmentation: nn.Module) -> dict[str, Any]:
    """How two views of held-out images lie: as features, and as embeddings for the loss.

    With the embeddings' width, and what to say of them if they have collapsed.
    """
    model.eval()
    count = len(images.heldout)
    index = torch.arange(count)[:: max(1, count // WATCHED)][:WATCHED]
    torch.manual_seed(0)
    views = [as_float(images.heldout[which]) for which in (index, _others(index, images))]
    device = next(model.parameters()).device
    features = [model.encoder(augmentation(view.to(device))) for view in views]
    embeddings = [model.head(each) for each in features]
    width = embeddings[0].shape[1]
    of_embeddings = embedding_health(embeddings[0], embeddings[1])
    return {
        "features": embedding_health(features[0], features[1]),
        "embeddings": of_embeddings,
        "width": width,
        "collapsed": warning(of_embeddings, width),
    }


def _others(index: Tensor, images: Images) -> Tensor:
    """Where second views come from: as in training."""
    if images.train_groups is None:
        return index
    return Partners(images.heldout_labels).draw(index)
