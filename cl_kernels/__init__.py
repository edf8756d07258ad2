"""Contrastive-learning kernels: exact losses and gradients in O(N D) memory.

Everything here computes statistics of the similarity matrix ``S = scale * query @ key.T`` tile by
tile and never holds it.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

from cl_kernels._dispatch import use_backend
from cl_kernels._version import __version__
from cl_kernels.csr import CSR
from cl_kernels.diagnostics import doctor, explain
from cl_kernels.grad_cache import GradCache, grad_cache_step
from cl_kernels.losses import (
    AnglELoss,
    ArcFaceLoss,
    BarlowTwinsLoss,
    ClipLoss,
    CoSENTLoss,
    CosFaceLoss,
    DecoupledLoss,
    DistillLoss,
    GISTLoss,
    HardNegativeLoss,
    InfoNCELoss,
    MarginMSELoss,
    MarginSoftmaxLoss,
    MatryoshkaLoss,
    MegaBatchMarginLoss,
    MultipleNegativesRankingLoss,
    MultiSimilarityLoss,
    NegativeCosineLoss,
    NormalizedSoftmaxLoss,
    NTXentLoss,
    PairwiseContrastiveLoss,
    ProxyAnchorLoss,
    Qwen3EmbeddingLoss,
    SigLipLoss,
    SupConLoss,
    TripletLoss,
    VICRegLoss,
    WeightedDecoupledLoss,
    angle,
    arcface,
    barlow_twins,
    clip,
    cosent,
    cosface,
    decoupled,
    distill,
    gist,
    hard_negative,
    info_nce,
    margin_mse,
    margin_softmax,
    matryoshka,
    mega_batch_margin,
    multi_similarity,
    multiple_negatives_ranking,
    negative_cosine,
    normalized_softmax,
    nt_xent,
    pairwise_contrastive,
    proxy_anchor,
    qwen3_embedding,
    siglip,
    supcon,
    triplet,
    vicreg,
    weighted_decoupled,
)
from cl_kernels.losses.epilogues import contrast
from cl_kernels.mining import (
    MinedNegatives,
    MiningSchedule,
    hardest_negative,
    hardest_positive,
    mine_hard_negatives,
    semi_hard_negative,
)
from cl_kernels.pairs import PairFilter
from cl_kernels.reading import debug_checks
from cl_kernels.search import TopK, topk
from cl_kernels.statistics.functions import (
    HingeSum,
    row_col_hinge_sum,
    row_col_logsumexp,
    row_col_softplus_sum,
    row_hinge_sum,
    row_logsumexp,
    row_softplus_sum,
    self_hinge_sum,
    self_logsumexp,
    self_softplus_sum,
)
from cl_kernels.statistics.positives import pair_logits

__all__ = [
    "CSR",
    "AnglELoss",
    "ArcFaceLoss",
    "BarlowTwinsLoss",
    "ClipLoss",
    "CoSENTLoss",
    "CosFaceLoss",
    "DecoupledLoss",
    "DistillLoss",
    "GISTLoss",
    "GradCache",
    "HardNegativeLoss",
    "HingeSum",
    "InfoNCELoss",
    "MarginMSELoss",
    "MarginSoftmaxLoss",
    "MatryoshkaLoss",
    "MegaBatchMarginLoss",
    "MinedNegatives",
    "MiningSchedule",
    "MultiSimilarityLoss",
    "MultipleNegativesRankingLoss",
    "NTXentLoss",
    "NegativeCosineLoss",
    "NormalizedSoftmaxLoss",
    "PairFilter",
    "PairwiseContrastiveLoss",
    "ProxyAnchorLoss",
    "Qwen3EmbeddingLoss",
    "SigLipLoss",
    "SupConLoss",
    "TopK",
    "TripletLoss",
    "VICRegLoss",
    "WeightedDecoupledLoss",
    "__version__",
    "angle",
    "arcface",
    "barlow_twins",
    "clip",
    "contrast",
    "cosent",
    "cosface",
    "debug_checks",
    "decoupled",
    "distill",
    "doctor",
    "explain",
    "gist",
    "grad_cache_step",
    "hard_negative",
    "hardest_negative",
    "hardest_positive",
    "info_nce",
    "margin_mse",
    "margin_softmax",
    "matryoshka",
    "mega_batch_margin",
    "mine_hard_negatives",
    "multi_similarity",
    "multiple_negatives_ranking",
    "negative_cosine",
    "normalized_softmax",
    "nt_xent",
    "pair_logits",
    "pairwise_contrastive",
    "proxy_anchor",
    "qwen3_embedding",
    "row_col_hinge_sum",
    "row_col_logsumexp",
    "row_col_softplus_sum",
    "row_hinge_sum",
    "row_logsumexp",
    "row_softplus_sum",
    "self_hinge_sum",
    "self_logsumexp",
    "self_softplus_sum",
    "semi_hard_negative",
    "siglip",
    "supcon",
    "topk",
    "triplet",
    "use_backend",
    "vicreg",
    "weighted_decoupled",
]

_MODULES = ("distributed", "evaluation", "memory")  # imported when they are first asked for


def __getattr__(name: str) -> _Any:
    if name in _MODULES:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
