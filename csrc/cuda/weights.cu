// Compiled, not yet run on a GPU.
#include "device.cuh"

namespace cl::cuda {
namespace {

template <class T>
__device__ T weight(const Upstream<T>& side, int64_t at, T logit) {
  const T lse = side.lse[at];
  if (lse == -kInfinity<T>) return 0;
  return (side.grad ? side.grad[at] : T(1)) * std::exp(logit - lse);
}

// A thread a column, over the rows that blockIdx.y takes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    weigh_kernel(Problem<T> problem, Slab<T> slab, Upstream<T> row, Upstream<T> col, bool is_self) {
  const T scale = *problem.scale;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x; j < slab.n; j += stride)
    for (int64_t i = blockIdx.y; i < slab.m; i += gridDim.y) {
      const int64_t query = slab.i0 + i, key = slab.j0 + j;
      const T logit = magnitude_of(scale) * similarity(problem, slab, sign_of(scale), i, j);
      const bool kept = keeps(problem.filters, query, key);
      T sum = kept ? weight(row, query, logit) : T(0);
      if (col.lse && (is_self ? keeps(problem.filters, key, query) : kept))
        sum += weight(col, key, logit);
      slab.dots[i * slab.n + j] = sum;
    }
}

// The block's sum in thread 0.
__device__ double sum_threads(double value) {
  __shared__ double values[kThreads];
  const int t = threadIdx.x;
  values[t] = value;
  for (int span = kThreads / 2; span > 0; span /= 2) {
    __syncthreads();
    if (t < span) values[t] += values[t + span];
  }
  return values[t];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_and_dot_kernel(const T* x, T* grad, int64_t count, const T* scale, double* partial) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  double sum = 0;
  for (int64_t p = int64_t{blockIdx.x} * kThreads + threadIdx.x; p < count; p += stride) {
    const T g = grad[p];
    if (g != 0) sum += static_cast<double>(x[p]) * g;
    grad[p] = g * *scale;
  }
  sum = sum_threads(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const double* partial, double factor, T* sum) {
  double mine = 0;
  for (int p = threadIdx.x; p < kPartialSums; p += kThreads) mine += partial[p];
  mine = sum_threads(mine);
  if (threadIdx.x == 0) *sum = static_cast<T>(factor * mine);
}

}  // namespace

template <class T>
void weigh(const Problem<T>& problem, const Slab<T>& slab, const Upstream<T>& row,
           const Upstream<T>& col, bool is_self) {
  const dim3 blocks(capped(divided(slab.n, kThreads)), capped(slab.m));
  launch(weigh_kernel<T>, blocks, problem, slab, row, col, is_self);
}

template <class T>
void scale_and_dot(const T* x, T* grad, int64_t count, const T* scale, double factor,
                   double* partial, T* inner) {
  launch(scale_and_dot_kernel<T>, kPartialSums, x, grad, count, scale, partial);
  launch(sum_kernel<T>, 1, static_cast<const double*>(partial), factor, inner);
}

#define CL_INSTANTIATE(T)                                                                        \
  template void weigh(const Problem<T>&, const Slab<T>&, const Upstream<T>&, const Upstream<T>&, \
                      bool);                                                                     \
  template void scale_and_dot(const T*, T*, int64_t, const T*, double, double*, T*);
CL_INSTANTIATE(float)
CL_INSTANTIATE(double)

}  // namespace cl::cuda
