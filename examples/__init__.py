"""Programs that train real models with cl_kernels."""
