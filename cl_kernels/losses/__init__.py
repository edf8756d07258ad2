"""Losses: short compositions of the streamed statistics on vectors. One file each."""

from cl_kernels.losses.clip import ClipLoss, clip
from cl_kernels.losses.cosent import AnglELoss, CoSENTLoss, angle, cosent
from cl_kernels.losses.decoupled import (
    DecoupledLoss,
    WeightedDecoupledLoss,
    decoupled,
    weighted_decoupled,
)
from cl_kernels.losses.distill import DistillLoss, distill
from cl_kernels.losses.gist import GISTLoss, gist
from cl_kernels.losses.hard_negative import HardNegativeLoss, hard_negative
from cl_kernels.losses.info_nce import InfoNCELoss, info_nce
from cl_kernels.losses.margin_mse import MarginMSELoss, margin_mse
from cl_kernels.losses.margin_softmax import (
    ArcFaceLoss,
    CosFaceLoss,
    MarginSoftmaxLoss,
    NormalizedSoftmaxLoss,
    arcface,
    cosface,
    margin_softmax,
    normalized_softmax,
)
from cl_kernels.losses.matryoshka import MatryoshkaLoss, matryoshka
from cl_kernels.losses.mega_batch_margin import MegaBatchMarginLoss, mega_batch_margin
from cl_kernels.losses.multi_similarity import MultiSimilarityLoss, multi_similarity
from cl_kernels.losses.multiple_negatives_ranking import (
    MultipleNegativesRankingLoss,
    multiple_negatives_ranking,
)
from cl_kernels.losses.negative_free import (
    BarlowTwinsLoss,
    NegativeCosineLoss,
    VICRegLoss,
    barlow_twins,
    negative_cosine,
    vicreg,
)
from cl_kernels.losses.nt_xent import NTXentLoss, nt_xent
from cl_kernels.losses.pairwise_contrastive import PairwiseContrastiveLoss, pairwise_contrastive
from cl_kernels.losses.proxy_anchor import ProxyAnchorLoss, proxy_anchor
from cl_kernels.losses.qwen3_embedding import Qwen3EmbeddingLoss, qwen3_embedding
from cl_kernels.losses.siglip import SigLipLoss, siglip
from cl_kernels.losses.supcon import SupConLoss, supcon
from cl_kernels.losses.triplet import TripletLoss, triplet

__all__ = [
    "AnglELoss",
    "ArcFaceLoss",
    "BarlowTwinsLoss",
    "ClipLoss",
    "CoSENTLoss",
    "CosFaceLoss",
    "DecoupledLoss",
    "DistillLoss",
    "GISTLoss",
    "HardNegativeLoss",
    "InfoNCELoss",
    "MarginMSELoss",
    "MarginSoftmaxLoss",
    "MatryoshkaLoss",
    "MegaBatchMarginLoss",
    "MultiSimilarityLoss",
    "MultipleNegativesRankingLoss",
    "NTXentLoss",
    "NegativeCosineLoss",
    "NormalizedSoftmaxLoss",
    "PairwiseContrastiveLoss",
    "ProxyAnchorLoss",
    "Qwen3EmbeddingLoss",
    "SigLipLoss",
    "SupConLoss",
    "TripletLoss",
    "VICRegLoss",
    "WeightedDecoupledLoss",
    "angle",
    "arcface",
    "barlow_twins",
    "clip",
    "cosent",
    "cosface",
    "decoupled",
    "distill",
    "gist",
    "hard_negative",
    "info_nce",
    "margin_mse",
    "margin_softmax",
    "matryoshka",
    "mega_batch_margin",
    "multi_similarity",
    "multiple_negatives_ranking",
    "negative_cosine",
    "normalized_softmax",
    "nt_xent",
    "pairwise_contrastive",
    "proxy_anchor",
    "qwen3_embedding",
    "siglip",
    "supcon",
    "triplet",
    "vicreg",
    "weighted_decoupled",
]
