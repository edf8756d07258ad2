#define CL_ISA avx2
#include "tile_kernels.inl"
