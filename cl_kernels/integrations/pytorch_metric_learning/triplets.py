"""All triplets of a batch."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning import losses as theirs

from cl_kernels.integrations.labels import whole_labels
from cl_kernels.losses import triplet


class TripletMarginLoss(theirs.TripletMarginLoss):
    """``pytorch_metric_learning.losses.TripletMarginLoss``: all triplets of a batch without a list
    of them. ``swap``, fewer ``triplets_per_anchor``, reference rows, and reducers other than
    ``AvgNonZeroReducer`` and ``MeanReducer``, which ask for every triplet's loss, are left to the
    library."""

    def compute_loss(self, embeddings, labels: Any, indices_tuple, ref_emb, ref_labels):
        averages: Any = {reducers.AvgNonZeroReducer: "active", reducers.MeanReducer: "all"}
        average, distance = averages.get(type(self.reducer)), _name_of(self.distance)
        listed = indices_tuple is not None or ref_emb is not embeddings
        listed = listed or ref_labels is not labels
        some = self.swap or self.triplets_per_anchor != "all"
        noted = self.reducer.collect_stats or self.distance.collect_stats
        if labels is None or listed or some or noted or average is None or distance is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        settings: Any = {"distance": distance, "average": average, "soft": self.smooth_loss}
        normalize = self.distance.normalize_embeddings
        (labels,) = whole_labels(labels)
        loss = triplet(embeddings, labels, margin=self.margin, normalize=normalize, **settings)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


def _name_of(distance: Any) -> str | None:
    """As ``triplet`` calls it; None of what it has not."""
    of_products = distances.CosineSimilarity, distances.DotProductSimilarity
    if type(distance) in of_products and distance.power == 1 and distance.p == 2:
        return "cosine"
    if type(distance) is not distances.LpDistance or distance.p != 2:
        return None
    return {1: "euclidean", 2: "squared_euclidean"}.get(distance.power)


REPLACED = [(theirs.TripletMarginLoss, TripletMarginLoss)]
