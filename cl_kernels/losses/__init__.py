"""Losses: short compositions of the streamed statistics on vectors. One file each."""

from cl_kernels.losses.clip import ClipLoss, clip
from cl_kernels.losses.info_nce import InfoNCELoss, info_nce
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
from cl_kernels.losses.nt_xent import NTXentLoss, nt_xent
from cl_kernels.losses.siglip import SigLipLoss, siglip
from cl_kernels.losses.supcon import SupConLoss, supcon

__all__ = [
    "ArcFaceLoss",
    "ClipLoss",
    "CosFaceLoss",
    "InfoNCELoss",
    "MarginSoftmaxLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "SigLipLoss",
    "SupConLoss",
    "arcface",
    "clip",
    "cosface",
    "info_nce",
    "margin_softmax",
    "normalized_softmax",
    "nt_xent",
    "siglip",
    "supcon",
]
