// What the kernels share: their launch, and what a logit is (csrc/cpu/tile_loop.h says the same).
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "kernels.h"

namespace cl::cuda {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 32768;  // of a grid whose blocks stride over the rest

template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

inline unsigned capped(int64_t blocks) { return std::min<int64_t>(blocks, kMostBlocks); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, const Arguments&... arguments) {
  if (blocks.x == 0 || blocks.y == 0) return;
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(
      torch::stable::accelerator::getCurrentDeviceIndex(), &stream));
  kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Logits are magnitude * similarity with a magnitude that is not negative, so that the largest
// similarity makes the largest logit. Scale 0 makes all similarities 0.
template <class T>
__device__ T magnitude_of(T scale) {
  return scale == 0 ? T(1) : std::abs(scale);
}

template <class T>
__device__ T sign_of(T scale) {
  return scale == 0 ? T(0) : scale < 0 ? T(-1) : T(1);
}

__device__ inline bool keeps(const Filters& filters, int64_t query, int64_t key) {
  for (int f = 0; f < kMostFilters; ++f)
    if (f < filters.count &&
        (filters.query_ids[f][query] == filters.key_ids[f][key]) != filters.keep_same[f])
      return false;
  return true;
}

// Similarity of row i and column j of the slab, whether the pair is kept or not.
template <class T>
__device__ T similarity(const Problem<T>& problem, const Slab<T>& slab, T sign, int64_t i,
                        int64_t j) {
  if (problem.query_nonfinite && problem.query_nonfinite[slab.i0 + i]) return kNan<T>;
  if (problem.key_nonfinite && problem.key_nonfinite[slab.j0 + j]) return kNan<T>;
  return sign * slab.dots[i * slab.n + j];
}

}  // namespace cl::cuda
