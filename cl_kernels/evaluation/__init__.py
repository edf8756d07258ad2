"""How good embeddings are: retrieval, k nearest neighbours, verification thresholds, drift.

Everything is exact and rests on ``topk``: no N x N matrix is held.
"""

from .calibration import Calibration, calibrate_gallery, calibrate_threshold
from .drift import DriftReport, Norms, embedding_drift
from .knn import KNNPrediction, knn_accuracy, knn_classify
from .relevance import LabelRelevance, label_relevance
from .retrieval import RetrievalMetrics, mean_average_precision, retrieval_metrics
from .training import ContrastiveMetrics, contrastive_metrics

__all__ = [
    "Calibration",
    "ContrastiveMetrics",
    "DriftReport",
    "KNNPrediction",
    "LabelRelevance",
    "Norms",
    "RetrievalMetrics",
    "calibrate_gallery",
    "calibrate_threshold",
    "contrastive_metrics",
    "embedding_drift",
    "knn_accuracy",
    "knn_classify",
    "label_relevance",
    "mean_average_precision",
    "retrieval_metrics",
]
