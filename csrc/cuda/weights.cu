#include "device.cuh"

namespace cl::cuda {
namespace {

template <class Fold, class T>
__device__ T weighted(Upstream<T> side, int64_t at, T logit) {
  if (logit == -kInfinity<T>) return 0;
  return (side.grad ? side.grad[at] : T(1)) * Fold::weight(logit, side.value[at]);
}

// A thread a column, over the rows that blockIdx.y takes.
template <class Fold, class T>
__global__ void __launch_bounds__(kThreads)
    weigh_kernel(Problem<T> problem, Slab<T> slab, Upstream<T> row, Upstream<T> col, bool is_self) {
  const T scale = *problem.scale;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x; j < slab.n; j += stride)
    for (int64_t i = blockIdx.y; i < slab.m; i += gridDim.y) {
      const int64_t query = slab.i0 + i, key = slab.j0 + j;
      const T s = similarity(problem, slab, i, j), z = logit(problem, scale, s, query, key);
      T sum = weighted<Fold>(row, query, z);
      if (col.value)
        sum += weighted<Fold>(col, key, is_self ? logit(problem, scale, s, key, query) : z);
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

template <class Fold, class T>
void weigh(const Problem<T>& problem, const Slab<T>& slab, Upstream<T> row, Upstream<T> col,
           bool is_self) {
  const dim3 blocks(capped(divided(slab.n, kThreads)), capped(slab.m));
  launch(weigh_kernel<Fold, T>, blocks, problem, slab, row, col, is_self);
}

template <class T>
void scale_and_dot(const T* x, T* grad, int64_t count, const T* scale, double factor,
                   double* partial, T* inner) {
  launch(scale_and_dot_kernel<T>, kPartialSums, x, grad, count, scale, partial);
  launch(sum_kernel<T>, 1, static_cast<const double*>(partial), factor, inner);
}

#define CL_INSTANTIATE(FOLD)                                                                       \
  template void weigh<FOLD<float>>(const Problem<float>&, const Slab<float>&, Upstream<float>,     \
                                   Upstream<float>, bool);                                         \
  template void weigh<FOLD<double>>(const Problem<double>&, const Slab<double>&, Upstream<double>, \
                                    Upstream<double>, bool);
CL_EACH_FOLD(CL_INSTANTIATE)
template void scale_and_dot(const float*, float*, int64_t, const float*, double, double*, float*);
template void scale_and_dot(const double*, double*, int64_t, const double*, double, double*,
                            double*);

}  // namespace cl::cuda
