#define CL_ISA baseline
#include "tile_kernels.inl"
