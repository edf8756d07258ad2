#define CL_ISA avx512
#define CL_VECTOR_BYTES 64
#include "tile_kernels.inl"
