"""Contrastive-learning kernels: exact losses and gradients in O(N D) memory.

Everything here computes statistics of the similarity matrix ``S = scale * query @ key.T`` tile by
tile and never holds it.
"""

from cl_kernels._dispatch import use_backend
from cl_kernels._version import __version__
from cl_kernels.csr import CSR
from cl_kernels.diagnostics import doctor, explain
from cl_kernels.grad_cache import GradCache, grad_cache_step
from cl_kernels.losses import (
    AnglELoss,
    BarlowTwinsLoss,
    ClipLoss,
    CoSENTLoss,
    DistillLoss,
    InfoNCELoss,
    MarginMSELoss,
    MatryoshkaLoss,
    NegativeCosineLoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
    VICRegLoss,
    angle,
    barlow_twins,
    clip,
    cosent,
    distill,
    info_nce,
    margin_mse,
    matryoshka,
    negative_cosine,
    nt_xent,
    siglip,
    supcon,
    vicreg,
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
    "BarlowTwinsLoss",
    "ClipLoss",
    "CoSENTLoss",
    "DistillLoss",
    "GradCache",
    "HingeSum",
    "InfoNCELoss",
    "MarginMSELoss",
    "MatryoshkaLoss",
    "MinedNegatives",
    "MiningSchedule",
    "NTXentLoss",
    "NegativeCosineLoss",
    "PairFilter",
    "SigLipLoss",
    "SupConLoss",
    "TopK",
    "VICRegLoss",
    "__version__",
    "angle",
    "barlow_twins",
    "clip",
    "contrast",
    "cosent",
    "debug_checks",
    "distill",
    "doctor",
    "explain",
    "grad_cache_step",
    "hardest_negative",
    "hardest_positive",
    "info_nce",
    "margin_mse",
    "matryoshka",
    "mine_hard_negatives",
    "negative_cosine",
    "nt_xent",
    "pair_logits",
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
    "use_backend",
    "vicreg",
]
