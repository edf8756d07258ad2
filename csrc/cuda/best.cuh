// The k best pairs of a row, kept by a warp or by a block. Both take candidates batch by batch and
// drop those that cannot beat the k-th best so far before they look any closer.
#pragma once
#include "candidates.cuh"

namespace cl::cuda {

constexpr unsigned kWarp = ~0u;  // all lanes

// Threads that say yes, counted over the lanes below this one.
__device__ inline int lanes_before(unsigned yes) {
  return __popc(yes & ((1u << threadIdx.x % 32) - 1));
}

template <class T>
__device__ void write_place(const Best<T>& best, int64_t row, int64_t place, Packed<T> pair) {
  const bool filled = pair != kEmpty<T>;
  best.values[row * best.k + place] = filled ? score_of<T>(pair) : -kInfinity<T>;
  best.indices[row * best.k + place] = filled ? index_of<T>(pair) : -1;
}

// The k <= 32 REGISTERS best, sorted across the registers of a warp: place p is in register p / 32
// of lane p % 32, and the k-th best is in the last place: pairs better than any fill the first
// ones. Candidates wait in shared memory; 32 at a time are sorted and merged, as in Johnson et al.,
// "Billion-scale similarity search with GPUs" (2017), section 5.2, where they wait in registers.
template <int REGISTERS>
class WarpBest {
  using Pair = Packed<float>;

 public:
  static constexpr int kWaiting = 31 + 32 * kBatch;

  // waiting [kWaiting] is this warp's.
  __device__ WarpBest(Pair* waiting, int k) : waiting_(waiting), skipped_(32 * REGISTERS - k) {
#pragma unroll
    for (int r = 0; r < REGISTERS; ++r)
      best_[r] = r * 32 + lane() < skipped_ ? ~kEmpty<float> : kEmpty<float>;
  }

  template <class Wanted>
  __device__ void take(const Pair (&pairs)[kBatch], const Wanted& wanted) {
    bool takes[kBatch], any = false;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) any |= takes[b] = pairs[b] > bound_ && wanted(pairs[b]);
    if (!__any_sync(kWarp, any)) return;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const unsigned taken = __ballot_sync(kWarp, takes[b]);
      if (takes[b]) waiting_[count_ + lanes_before(taken)] = pairs[b];
      count_ += __popc(taken);
    }
    __syncwarp();
    while (count_ >= 32) {
      count_ -= 32;
      merge(waiting_[count_ + lane()]);
    }
    __syncwarp();
  }

  __device__ void write(const Best<float>& best, int64_t row) {
    merge(lane() < count_ ? waiting_[lane()] : kEmpty<float>);
#pragma unroll
    for (int r = 0; r < REGISTERS; ++r) {
      const int place = r * 32 + lane() - skipped_;
      if (place >= 0) write_place(best, row, place, best_[r]);
    }
    __syncwarp();
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  // The larger of both lanes' pairs, or the smaller.
  __device__ static Pair exchanged(Pair pair, int stride, bool larger) {
    const Pair other = __shfl_xor_sync(kWarp, pair, stride);
    return (other > pair) == larger ? other : pair;
  }

  // Smallest in lane 0.
  __device__ static Pair sorted(Pair pair) {
#pragma unroll
    for (int size = 2; size <= 32; size *= 2)
#pragma unroll
      for (int stride = size / 2; stride > 0; stride /= 2)
        pair = exchanged(pair, stride, !(lane() & stride) == !!(lane() & size));
    return pair;
  }

  // A pair of each lane. The places sorted down and, behind them, the new pairs sorted up are one
  // bitonic sequence; its larger half is bitonic too, and is merged in place.
  __device__ void merge(Pair pair) {
    pair = sorted(pair);
    Pair& last = best_[REGISTERS - 1];
    if (pair > last) last = pair;
#pragma unroll
    for (int stride = REGISTERS / 2; stride > 0; stride /= 2)
#pragma unroll
      for (int r = 0; r < REGISTERS; ++r)
        if (!(r & stride) && best_[r] < best_[r + stride]) {
          const Pair smaller = best_[r];
          best_[r] = best_[r + stride];
          best_[r + stride] = smaller;
        }
#pragma unroll
    for (int r = 0; r < REGISTERS; ++r)
#pragma unroll
      for (int stride = 16; stride > 0; stride /= 2)
        best_[r] = exchanged(best_[r], stride, !(lane() & stride));
    bound_ = __shfl_sync(kWarp, last, 31);
  }

  Pair best_[REGISTERS], bound_ = kEmpty<float>;
  Pair* waiting_;
  int skipped_, count_ = 0;
};

// Power of two many pairs, the largest first.
template <class P>
__device__ void sort_down(P* pairs, int count) {
  for (int size = 2; size <= count; size *= 2)
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int p = threadIdx.x; p < count / 2; p += kThreads) {
        const int low = 2 * p - (p & (stride - 1)), high = low + stride;
        const P first = pairs[low], second = pairs[high];
        if ((first < second) == !(low & size)) {
          pairs[low] = second;
          pairs[high] = first;
        }
      }
    }
  __syncthreads();
}

// What the threads of a block tell one another. The last three are loaded as four words, of which
// size must be none: it is written meanwhile.
struct BlockShared {
  int size;                     // of the buffer
  alignas(16) int counts[256];  // of each digit
  int digit, larger, same;
};

// A reservoir (selection.h) that a block fills together, in shared or in global memory.
template <class T>
class BlockBest {
  using Pair = Packed<T>;
  static_assert(RadixSelect<T>::kDigits == kThreads);

 public:
  static constexpr int kStep = kBatch * kThreads;

  // The buffer has places >= k + kStep, of which a power of two >= k can be sorted.
  __device__ BlockBest(Pair* buffer, int places, int k, BlockShared& shared)
      : buffer_(buffer), places_(places), k_(k), shared_(shared) {
    if (threadIdx.x == 0) shared_.size = 0;
  }

  // Starts with what is in best already.
  __device__ void resume(const Best<T>& best, int64_t row) {
    for (int begin = 0; begin < k_; begin += kThreads) {
      const int p = begin + threadIdx.x;
      const int64_t index = p < k_ ? best.indices[row * best.k + p] : -1;
      if (index >= 0) buffer_[p] = pack(best.values[row * best.k + p], index);
      size_ += __syncthreads_count(index >= 0);
    }
    if (threadIdx.x == 0) shared_.size = size_;
    if (size_ == k_) bound_ = buffer_[k_ - 1];
  }

  template <class Wanted>
  __device__ void take(const Pair (&pairs)[kBatch], const Wanted& wanted) {
    bool takes[kBatch], any = false;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) any |= takes[b] = pairs[b] > bound_ && wanted(pairs[b]);
    if (!__syncthreads_or(any)) return;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) push(takes[b], pairs[b]);
    __syncthreads();
    size_ = shared_.size;
    if (size_ + kStep > places_) tighten();
  }

  __device__ void write(const Best<T>& best, int64_t row) {
    if (size_ > k_) tighten();
    int count = 1;
    while (count < size_) count *= 2;
    for (int p = size_ + threadIdx.x; p < count; p += kThreads) buffer_[p] = kEmpty<T>;
    sort_down(buffer_, count);
    for (int64_t p = threadIdx.x; p < best.k; p += kThreads)
      write_place(best, row, p, p < size_ ? buffer_[p] : kEmpty<T>);
    __syncthreads();
  }

 private:
  // Appends the pairs of those threads of a warp that take theirs, in any order.
  __device__ void push(bool takes, Pair pair) {
    const unsigned taken = __ballot_sync(kWarp, takes);
    int first = 0;
    if (threadIdx.x % 32 == 0) first = atomicAdd(&shared_.size, __popc(taken));
    first = __shfl_sync(kWarp, first, 0);
    if (takes) buffer_[first + lanes_before(taken)] = pair;
  }

  // Keeps the k best of more than k.
  __device__ void tighten() {
    RadixSelect<T> select(k_);
    while (!select.done()) {
      shared_.counts[threadIdx.x] = 0;
      __syncthreads();
      for (int p = threadIdx.x; p < size_; p += kThreads)
        if (select.matches(buffer_[p])) atomicAdd(&shared_.counts[select.digit(buffer_[p])], 1);
      __syncthreads();
      if (threadIdx.x < 32) find_digit(static_cast<int>(select.rank()));
      __syncthreads();
      select.narrow(shared_.digit, shared_.larger, shared_.same);
    }
    const Pair threshold = select.threshold();
    bound_ = threshold == kEmpty<T> ? threshold : threshold - 1;

    if (threadIdx.x == 0) shared_.size = 0;
    for (int begin = 0; begin < size_; begin += kThreads) {
      const int p = begin + threadIdx.x;
      const Pair pair = p < size_ ? buffer_[p] : kEmpty<T>;
      __syncthreads();  // what is overwritten has been read
      push(pair > bound_, pair);
    }
    size_ = k_;
  }

  // By one warp: the digit of the pair with this rank, lane 0 looking at the largest ones.
  __device__ void find_digit(int rank) {
    constexpr int kEach = RadixSelect<T>::kDigits / 32;
    int digit = RadixSelect<T>::kDigits - 1 - kEach * threadIdx.x;
    int mine = 0;
    for (int d = 0; d < kEach; ++d) mine += shared_.counts[digit - d];
    int larger = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
      const int before = __shfl_up_sync(kWarp, larger, distance);
      if (threadIdx.x >= distance) larger += before;
    }
    larger -= mine;
    if (rank <= larger || rank > larger + mine) return;
    for (; larger + shared_.counts[digit] < rank; --digit) larger += shared_.counts[digit];
    shared_.digit = digit;
    shared_.larger = larger;
    shared_.same = shared_.counts[digit];
  }

  Pair* buffer_;
  int places_, k_, size_ = 0;
  Pair bound_ = kEmpty<T>;
  BlockShared& shared_;
};

}  // namespace cl::cuda
