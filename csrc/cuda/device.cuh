// What the kernels share: their launch, and what a logit is (csrc/cpu/tile_logits.h says the same).
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

// Similarity of row i and column j of the slab.
template <class T>
__device__ T similarity(const Problem<T>& problem, const Slab<T>& slab, int64_t i, int64_t j) {
  if (problem.query_nonfinite && problem.query_nonfinite[slab.i0 + i]) return kNan<T>;
  if (problem.key_nonfinite && problem.key_nonfinite[slab.j0 + j]) return kNan<T>;
  return slab.dots[i * slab.n + j];
}

// Never part of a fused multiply-add: the logit that a statistic is taken off must be the one that
// it was taken of, rounded and all.
__device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// -inf where the pair is dropped.
template <class T>
__device__ T logit(const Problem<T>& problem, T scale, T similarity, int64_t query, int64_t key) {
  if (!problem.pairs.keeps(query, key, similarity)) return -kInfinity<T>;
  return rounded_product(scale, similarity);
}

}  // namespace cl::cuda
