#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "device.cuh"

namespace cl::cuda {
namespace {

__device__ float rounded(float x, ScalarType dtype) {
  if (dtype == ScalarType::BFloat16) return torch::headeronly::BFloat16(x);
  if (dtype == ScalarType::Half) return torch::headeronly::Half(x);
  return x;
}

__device__ double rounded(double x, ScalarType dtype) {
  return dtype == ScalarType::Double ? x : rounded(static_cast<float>(x), dtype);
}

// A block a row.
template <class In, class T>
__global__ void __launch_bounds__(kThreads)
    round_rows_kernel(const In* x, ScalarType dtype, int64_t rows, int64_t width, T* out,
                      bool* nonfinite) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const In* in = x + row * width;
    int found = 0;
    if (nonfinite) {
      for (int64_t d = threadIdx.x; d < width; d += kThreads) {
        const T value = rounded(static_cast<T>(in[d]), dtype);
        found |= !(value - value == 0);
      }
      found = __syncthreads_or(found);
      if (threadIdx.x == 0) nonfinite[row] = found;
    }
    for (int64_t d = threadIdx.x; d < width; d += kThreads)
      out[row * width + d] = found ? T(0) : rounded(static_cast<T>(in[d]), dtype);
  }
}

}  // namespace

template <class T>
void round_rows(const void* x, ScalarType dtype, ScalarType compute_dtype, int64_t rows,
                int64_t width, T* out, bool* nonfinite) {
  const auto from = [&]<class In>(In) {
    launch(round_rows_kernel<In, T>, capped(rows), static_cast<const In*>(x), compute_dtype, rows,
           width, out, nonfinite);
  };
  if constexpr (sizeof(T) == 8)
    from(double{});
  else if (dtype == ScalarType::BFloat16)
    from(torch::headeronly::BFloat16{});
  else if (dtype == ScalarType::Half)
    from(torch::headeronly::Half{});
  else
    from(float{});
}

template void round_rows(const void*, ScalarType, ScalarType, int64_t, int64_t, float*, bool*);
template void round_rows(const void*, ScalarType, ScalarType, int64_t, int64_t, double*, bool*);

}  // namespace cl::cuda
