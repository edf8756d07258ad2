// The kernels that a library is made of: namespaces cl::cpu and cl::cuda have functions of the same
// names, and each library registers its own.
#pragma once

#ifdef USE_CUDA
#include "cuda/topk.h"
#include "cuda/visits.h"

namespace cl::device {
using namespace cl::cuda;
}
#define CL_DISPATCH_KEY CUDA
#else
#include "cpu/topk.h"
#include "cpu/visits.h"

namespace cl::device {
using namespace cl::cpu;
}
#define CL_DISPATCH_KEY CPU
#endif
