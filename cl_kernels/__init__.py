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
    ClipLoss,
    CoSENTLoss,
    DistillLoss,
    InfoNCELoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
    angle,
    clip,
    cosent,
    distill,
    info_nce,
    nt_xent,
    siglip,
    supcon,
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
    "ClipLoss",
    "CoSENTLoss",
    "DistillLoss",
    "GradCache",
    "HingeSum",
    "InfoNCELoss",
    "MinedNegatives",
    "MiningSchedule",
    "NTXentLoss",
    "PairFilter",
    "SigLipLoss",
    "SupConLoss",
    "TopK",
    "__version__",
    "angle",
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
    "mine_hard_negatives",
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
]
