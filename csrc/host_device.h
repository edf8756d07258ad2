// What nvcc needs to read before a function that kernels and plain C++ share.
#pragma once

#ifdef __CUDACC__
#define CL_HOST_DEVICE __host__ __device__
#else
#define CL_HOST_DEVICE
#endif
