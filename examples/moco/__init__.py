"""MoCo v2 and v3, trained with ``cl_kernels.info_nce`` and ``cl_kernels.memory``."""
