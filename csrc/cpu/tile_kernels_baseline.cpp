#define CL_ISA baseline
#define CL_VECTOR_BYTES 16
#include "tile_kernels.inl"
