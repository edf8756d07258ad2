// Compiled, not yet run on a GPU.
#include "device.cuh"

namespace cl::cuda {
namespace {

constexpr int kStrip = 32;  // columns a block folds: a warp reads neighbours

template <class T>
__global__ void __launch_bounds__(kThreads)
    start_kernel(RunningLogSumExp<T>* state, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    state[i] = RunningLogSumExp<T>();
}

template <class T>
__device__ void merge_pair(const Problem<T>& problem, const Slab<T>& slab, T scale, int64_t i,
                           int64_t j, RunningLogSumExp<T>& state) {
  if (keeps(problem.filters, slab.i0 + i, slab.j0 + j))
    state.merge(similarity(problem, slab, sign_of(scale), i, j), T(1), magnitude_of(scale));
}

// Merges the states of threads t, t + WIDTH, t + 2 WIDTH, ... into that of each thread t < WIDTH.
template <int WIDTH, class T>
__device__ void merge_threads(RunningLogSumExp<T>& state, T magnitude) {
  __shared__ T max[kThreads], sum[kThreads];
  const int t = threadIdx.x;
  for (int span = kThreads / 2; span >= WIDTH; span /= 2) {
    max[t] = state.max;
    sum[t] = state.sum;
    __syncthreads();
    if (t < span) state.merge(max[t + span], sum[t + span], magnitude);
    __syncthreads();
  }
}

// A block a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fold_rows_kernel(Problem<T> problem, Slab<T> slab, RunningLogSumExp<T>* rows) {
  const T scale = *problem.scale;
  for (int64_t i = blockIdx.x; i < slab.m; i += gridDim.x) {
    RunningLogSumExp<T> state;
    for (int64_t j = threadIdx.x; j < slab.n; j += kThreads)
      merge_pair(problem, slab, scale, i, j, state);
    merge_threads<1>(state, magnitude_of(scale));
    if (threadIdx.x == 0) rows[slab.i0 + i].merge(state.max, state.sum, magnitude_of(scale));
  }
}

// A block a strip of columns, of which each of its warps takes every eighth row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fold_cols_kernel(Problem<T> problem, Slab<T> slab, RunningLogSumExp<T>* cols) {
  const T scale = *problem.scale;
  for (int64_t strip = blockIdx.x; strip * kStrip < slab.n; strip += gridDim.x) {
    const int64_t j = strip * kStrip + threadIdx.x % kStrip;
    RunningLogSumExp<T> state;
    if (j < slab.n)
      for (int64_t i = threadIdx.x / kStrip; i < slab.m; i += kThreads / kStrip)
        merge_pair(problem, slab, scale, i, j, state);
    merge_threads<kStrip>(state, magnitude_of(scale));
    if (threadIdx.x < kStrip && j < slab.n)
      cols[slab.j0 + j].merge(state.max, state.sum, magnitude_of(scale));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const RunningLogSumExp<T>* state, int64_t count, const T* scale, T* lse) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    lse[i] = state[i].value(magnitude_of(*scale));
}

}  // namespace

template <class T>
void start(RunningLogSumExp<T>* state, int64_t count) {
  launch(start_kernel<T>, capped(divided(count, kThreads)), state, count);
}

template <class T>
void fold_rows(const Problem<T>& problem, const Slab<T>& slab, RunningLogSumExp<T>* rows) {
  launch(fold_rows_kernel<T>, capped(slab.m), problem, slab, rows);
}

template <class T>
void fold_cols(const Problem<T>& problem, const Slab<T>& slab, RunningLogSumExp<T>* cols) {
  launch(fold_cols_kernel<T>, capped(divided(slab.n, kStrip)), problem, slab, cols);
}

template <class T>
void write(const RunningLogSumExp<T>* state, int64_t count, const T* scale, T* lse) {
  launch(write_kernel<T>, capped(divided(count, kThreads)), state, count, scale, lse);
}

#define CL_INSTANTIATE(T)                                                           \
  template void start(RunningLogSumExp<T>*, int64_t);                               \
  template void fold_rows(const Problem<T>&, const Slab<T>&, RunningLogSumExp<T>*); \
  template void fold_cols(const Problem<T>&, const Slab<T>&, RunningLogSumExp<T>*); \
  template void write(const RunningLogSumExp<T>*, int64_t, const T*, T*);
CL_INSTANTIATE(float)
CL_INSTANTIATE(double)

}  // namespace cl::cuda
