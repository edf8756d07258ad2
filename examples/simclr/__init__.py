"""SimCLR (Chen et al. 2020, arXiv:2002.05709) trained with ``cl_kernels.nt_xent``."""
