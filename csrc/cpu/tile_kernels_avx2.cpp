#define CL_ISA avx2
#define CL_VECTOR_BYTES 32
#include "tile_kernels.inl"
