"""Losses: short compositions of the streamed statistics on vectors. One file each."""

from cl_kernels.losses.clip import clip
from cl_kernels.losses.info_nce import info_nce
from cl_kernels.losses.nt_xent import nt_xent
from cl_kernels.losses.siglip import siglip

__all__ = ["clip", "info_nce", "nt_xent", "siglip"]
