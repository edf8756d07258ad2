// Top-K on a GPU: candidates of a row, and the selection of its k best. Functions enqueue their
// work on the current stream and return.
#pragma once
#include "../selection.h"
#include "kernels.h"

namespace cl::cuda {

// What a scan left over of all keys: packed pairs, in parts of up to capacity.
struct Survivors {
  const int64_t* packed;  // [M, parts, capacity]
  const int32_t* counts;  // [M, parts]
  int parts, capacity;
};

// How products become scores, and which pairs are wanted; what is null does not apply.
template <class T>
struct Scoring {
  const T *query_factor, *key_factor;             // [M], [N]
  KeptPairs<T> pairs;                             // its bounds are on scores
  const int64_t *exclude_offsets, *exclude_keys;  // [M + 1], and sorted keys of each query
};

// The scores of a slab; its first `seen` keys were in an earlier one.
template <class T>
struct Scores {
  Scoring<T> scoring;
  Slab<T> slab;
  int64_t seen;
};

// Results of all rows, best first; places without a pair hold -inf and -1.
template <class T>
struct Best {
  T* values;  // [M, k]
  int64_t* indices;
  int64_t k;
};

// Blocks' buffers in global memory, for rows that do not fit in shared memory.
template <class T>
struct Buffers {
  Packed<T>* pairs;  // [count, buffer_places<T>(k)]
  int64_t count;
};

// Pairs of a block's buffer while it selects k.
template <class T>
int buffer_places(int64_t k);

// Whether that buffer is one of Buffers.
template <class T>
bool is_in_memory(int64_t k);

// A warp a row; k <= kMostOfWarp.
constexpr int kMostOfWarp = 256;
void select_by_warps(const Survivors& survivors, int64_t rows, const Best<float>& best);

// A block a row. `limit` is the smaller of k and the number of candidates.
void select_by_blocks(const Survivors& survivors, int64_t rows, const Best<float>& best,
                      int64_t limit, const Buffers<float>& buffers);

// For queries [begin, end) of the slab, merged with what is in best if resumes.
template <class T>
void select_by_blocks(const Scores<T>& scores, int64_t begin, int64_t end, const Best<T>& best,
                      int64_t limit, bool resumes, const Buffers<T>& buffers);

}  // namespace cl::cuda
