// Candidates of a row, a batch for each thread at a time.
#pragma once
#include "device.cuh"
#include "select.h"

namespace cl::cuda {

constexpr int kBatch = 4;  // loads of a thread under way together

// Every each_batch() below calls take(pairs, wanted) by all threads alike, until all candidates of
// the row were handed out. A pair is kEmpty where there is none; wanted(pair) is asked only of
// pairs that are good enough.

template <class Take>
__device__ void each_batch(const Survivors& survivors, int64_t row, int thread, int threads,
                           const Take& take) {
  const int places = survivors.parts * survivors.capacity;
  const int64_t* packed = survivors.packed + row * places;
  const int32_t* counts = survivors.counts + row * survivors.parts;
  for (int begin = thread; begin - thread < places; begin += kBatch * threads) {
    Packed<float> pairs[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int place = begin + b * threads;
      const int part = place / survivors.capacity;
      const bool valid = place < places && place - part * survivors.capacity < counts[part];
      pairs[b] = valid ? packed[place] : kEmpty<float>;
    }
    take(pairs, [](Packed<float>) { return true; });
  }
}

__device__ inline bool contains(const int64_t* begin, const int64_t* end, int64_t key) {
  while (begin < end) {
    const int64_t* middle = begin + (end - begin) / 2;
    if (*middle == key) return true;
    if (*middle < key)
      begin = middle + 1;
    else
      end = middle;
  }
  return false;
}

template <class T>
__device__ bool is_wanted(const Scoring<T>& scoring, int64_t query, T score, int64_t key) {
  if (!scoring.pairs.keeps(query, key, score)) return false;
  if (!scoring.exclude_offsets) return true;
  const int64_t* offset = scoring.exclude_offsets + query;
  return !contains(scoring.exclude_keys + offset[0], scoring.exclude_keys + offset[1], key);
}

template <class T, class Take>
__device__ void each_batch(const Scores<T>& scores, int64_t query, int thread, int threads,
                           const Take& take) {
  const Scoring<T>& scoring = scores.scoring;
  const Slab<T>& slab = scores.slab;
  const T* dots = slab.dots + (query - slab.i0) * slab.n;
  const T query_factor = scoring.query_factor ? scoring.query_factor[query] : T(1);
  const auto wanted = [&](Packed<T> pair) {
    return is_wanted(scoring, query, score_of<T>(pair), index_of<T>(pair));
  };
  for (int64_t begin = scores.seen + thread; begin - thread < slab.n; begin += kBatch * threads) {
    Packed<T> pairs[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t j = begin + b * threads, key = slab.j0 + j;
      const bool inside = j < slab.n;
      const T key_factor = inside && scoring.key_factor ? scoring.key_factor[key] : T(1);
      const T score = inside ? dots[j] * key_factor * query_factor : -kInfinity<T>;
      pairs[b] = score > -kInfinity<T> ? pack(score, key) : kEmpty<T>;
    }
    take(pairs, wanted);
  }
}

}  // namespace cl::cuda
