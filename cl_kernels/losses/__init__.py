"""Losses: short compositions of the streamed statistics on vectors. One file each."""

from cl_kernels.losses.clip import ClipLoss, clip
from cl_kernels.losses.cosent import AnglELoss, CoSENTLoss, angle, cosent
from cl_kernels.losses.distill import DistillLoss, distill
from cl_kernels.losses.info_nce import InfoNCELoss, info_nce
from cl_kernels.losses.margin_mse import MarginMSELoss, margin_mse
from cl_kernels.losses.matryoshka import MatryoshkaLoss, matryoshka
from cl_kernels.losses.negative_free import (
    BarlowTwinsLoss,
    NegativeCosineLoss,
    VICRegLoss,
    barlow_twins,
    negative_cosine,
    vicreg,
)
from cl_kernels.losses.nt_xent import NTXentLoss, nt_xent
from cl_kernels.losses.siglip import SigLipLoss, siglip
from cl_kernels.losses.supcon import SupConLoss, supcon

__all__ = [
    "AnglELoss",
    "BarlowTwinsLoss",
    "ClipLoss",
    "CoSENTLoss",
    "DistillLoss",
    "InfoNCELoss",
    "MarginMSELoss",
    "MatryoshkaLoss",
    "NTXentLoss",
    "NegativeCosineLoss",
    "SigLipLoss",
    "SupConLoss",
    "VICRegLoss",
    "angle",
    "barlow_twins",
    "clip",
    "cosent",
    "distill",
    "info_nce",
    "margin_mse",
    "matryoshka",
    "negative_cosine",
    "nt_xent",
    "siglip",
    "supcon",
    "vicreg",
]
