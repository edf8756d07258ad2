#include "device.cuh"

namespace cl::cuda {
namespace {

constexpr int kStrip = 32;  // columns a block folds: a warp reads neighbours

template <class Fold>
__global__ void __launch_bounds__(kThreads) start_kernel(Fold* states, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    states[i] = Fold::nothing();
}

template <class Fold, class T>
__device__ void merge_pair(const Problem<T>& problem, const Slab<T>& slab, T scale, int64_t i,
                           int64_t j, Fold& state) {
  const T s = similarity(problem, slab, i, j);
  state.merge(Fold::of(logit(problem, scale, s, slab.i0 + i, slab.j0 + j)));
}

// Merges the states of threads t, t + WIDTH, t + 2 WIDTH, ... into that of each thread t < WIDTH.
template <int WIDTH, class Fold>
__device__ void merge_threads(Fold& state) {
  __shared__ Fold states[kThreads];
  const int t = threadIdx.x;
  for (int span = kThreads / 2; span >= WIDTH; span /= 2) {
    states[t] = state;
    __syncthreads();
    if (t < span) state.merge(states[t + span]);
    __syncthreads();
  }
}

// A block a row.
template <class Fold, class T>
__global__ void __launch_bounds__(kThreads)
    fold_rows_kernel(Problem<T> problem, Slab<T> slab, Fold* rows) {
  const T scale = *problem.scale;
  for (int64_t i = blockIdx.x; i < slab.m; i += gridDim.x) {
    Fold state = Fold::nothing();
    for (int64_t j = threadIdx.x; j < slab.n; j += kThreads)
      merge_pair(problem, slab, scale, i, j, state);
    merge_threads<1>(state);
    if (threadIdx.x == 0) rows[slab.i0 + i].merge(state);
  }
}

// A block a strip of columns, of which each of its warps takes every eighth row.
template <class Fold, class T>
__global__ void __launch_bounds__(kThreads)
    fold_cols_kernel(Problem<T> problem, Slab<T> slab, Fold* cols) {
  const T scale = *problem.scale;
  for (int64_t strip = blockIdx.x; strip * kStrip < slab.n; strip += gridDim.x) {
    const int64_t j = strip * kStrip + threadIdx.x % kStrip;
    Fold state = Fold::nothing();
    if (j < slab.n)
      for (int64_t i = threadIdx.x / kStrip; i < slab.m; i += kThreads / kStrip)
        merge_pair(problem, slab, scale, i, j, state);
    merge_threads<kStrip>(state);
    if (threadIdx.x < kStrip && j < slab.n) cols[slab.j0 + j].merge(state);
  }
}

template <class Fold, class T>
__global__ void __launch_bounds__(kThreads)
    write_kernel(const Fold* states, int64_t count, Outputs<T> out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    states[i].write(out, i);
}

}  // namespace

template <class Fold, class T>
void FoldKernels<Fold, T>::start(Fold* states, int64_t count) {
  launch(start_kernel<Fold>, capped(divided(count, kThreads)), states, count);
}

template <class Fold, class T>
void FoldKernels<Fold, T>::fold_rows(const Problem<T>& problem, const Slab<T>& slab, Fold* rows) {
  launch(fold_rows_kernel<Fold, T>, capped(slab.m), problem, slab, rows);
}

template <class Fold, class T>
void FoldKernels<Fold, T>::fold_cols(const Problem<T>& problem, const Slab<T>& slab, Fold* cols) {
  launch(fold_cols_kernel<Fold, T>, capped(divided(slab.n, kStrip)), problem, slab, cols);
}

template <class Fold, class T>
void FoldKernels<Fold, T>::write(const Fold* states, int64_t count, Outputs<T> out) {
  launch(write_kernel<Fold, T>, capped(divided(count, kThreads)), states, count, out);
}

#define CL_INSTANTIATE(FOLD)                \
  template struct FoldKernels<FOLD<float>>; \
  template struct FoldKernels<FOLD<double>>;
CL_EACH_FOLD(CL_INSTANTIATE)

}  // namespace cl::cuda
