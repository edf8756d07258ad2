#define CL_ISA avx512
#include "tile_kernels.inl"
