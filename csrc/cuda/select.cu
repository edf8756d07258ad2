#include <bit>

#include "best.cuh"

namespace cl::cuda {
namespace {

constexpr int kWarps = kThreads / 32;

// Of a block's shared memory, which with what else it holds is below the 48 KB that need no asking.
template <class T>
constexpr int kSharedPlaces = 45 * 1024 / sizeof(Packed<T>);

template <int REGISTERS>
__global__ void __launch_bounds__(kThreads)
    warp_select_kernel(Survivors survivors, int64_t rows, Best<float> best) {
  __shared__ Packed<float> waiting[kWarps][WarpBest<REGISTERS>::kWaiting];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int64_t row = int64_t{blockIdx.x} * kWarps + warp; row < rows;
       row += int64_t{gridDim.x} * kWarps) {
    WarpBest<REGISTERS> found(waiting[warp], static_cast<int>(best.k));
    each_batch(survivors, row, lane, 32,
               [&](const auto& pairs, const auto& wanted) { found.take(pairs, wanted); });
    found.write(best, row);
  }
}

template <class T, class Candidates>
__global__ void __launch_bounds__(kThreads)
    block_select_kernel(Candidates candidates, int64_t begin, int64_t end, Best<T> best, int limit,
                        bool resumes, Packed<T>* memory, int places) {
  __shared__ Packed<T> buffer[kSharedPlaces<T>];
  __shared__ BlockShared shared;
  Packed<T>* mine = memory ? memory + int64_t{blockIdx.x} * places : buffer;
  for (int64_t row = begin + blockIdx.x; row < end; row += gridDim.x) {
    BlockBest<T> found(mine, places, limit, shared);
    if (resumes) found.resume(best, row);
    each_batch(candidates, row, threadIdx.x, kThreads,
               [&](const auto& pairs, const auto& wanted) { found.take(pairs, wanted); });
    found.write(best, row);
  }
}

template <class T, class Candidates>
void launch_blocks(const Candidates& candidates, int64_t begin, int64_t end, const Best<T>& best,
                   int64_t limit, bool resumes, const Buffers<T>& buffers) {
  const int64_t blocks = buffers.pairs ? std::min(end - begin, buffers.count) : end - begin;
  launch(block_select_kernel<T, Candidates>, capped(blocks), candidates, begin, end, best,
         static_cast<int>(limit), resumes, buffers.pairs, buffer_places<T>(limit));
}

}  // namespace

template <class T>
bool is_in_memory(int64_t k) {
  return std::bit_ceil(static_cast<uint64_t>(k)) + BlockBest<T>::kStep > kSharedPlaces<T>;
}

template <class T>
int buffer_places(int64_t k) {
  const int sorted = static_cast<int>(std::bit_ceil(static_cast<uint64_t>(k)));
  if (is_in_memory<T>(k)) return 2 * sorted;
  return std::clamp(4 * sorted, 2 * BlockBest<T>::kStep, kSharedPlaces<T>);
}

void select_by_warps(const Survivors& survivors, int64_t rows, const Best<float>& best) {
  const auto run = [&](auto kernel) {
    launch(kernel, capped(divided(rows, kWarps)), survivors, rows, best);
  };
  if (best.k <= 32)
    run(warp_select_kernel<1>);
  else if (best.k <= 64)
    run(warp_select_kernel<2>);
  else if (best.k <= 128)
    run(warp_select_kernel<4>);
  else
    run(warp_select_kernel<8>);
}

void select_by_blocks(const Survivors& survivors, int64_t rows, const Best<float>& best,
                      int64_t limit, const Buffers<float>& buffers) {
  launch_blocks(survivors, 0, rows, best, limit, false, buffers);
}

template <class T>
void select_by_blocks(const Scores<T>& scores, int64_t begin, int64_t end, const Best<T>& best,
                      int64_t limit, bool resumes, const Buffers<T>& buffers) {
  launch_blocks(scores, begin, end, best, limit, resumes, buffers);
}

template bool is_in_memory<float>(int64_t);
template bool is_in_memory<double>(int64_t);
template int buffer_places<float>(int64_t);
template int buffer_places<double>(int64_t);
template void select_by_blocks(const Scores<float>&, int64_t, int64_t, const Best<float>&, int64_t,
                               bool, const Buffers<float>&);
template void select_by_blocks(const Scores<double>&, int64_t, int64_t, const Best<double>&,
                               int64_t, bool, const Buffers<double>&);

}  // namespace cl::cuda
