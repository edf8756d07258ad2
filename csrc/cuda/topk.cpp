#include "topk.h"

#include "select.h"
#include "slabs.h"

namespace cl::cuda {
namespace {

// All products of a call have one shape, [kQueries, D] x [D, width], which depends on the keys
// alone: a pair's score is computed by the same instructions whatever batch its query is in and
// wherever its key is. Ragged ranges reach back into the one before, and few queries are padded.
constexpr int64_t kQueries = 256;
constexpr int64_t kScoreBytes = int64_t{32} << 20;

constexpr int64_t kBufferBytes = int64_t{16} << 20;  // of rows that fit; one row may be more
constexpr int64_t kMostPlaces = int64_t{1} << 29;    // of a row

// Ranges of exactly `part`, which share it alike and overlap where count is not a multiple.
std::vector<Range> cover(int64_t count, int64_t part) {
  std::vector<Range> ranges = split(count, part);
  for (Range& range : ranges) range = {std::min(range.begin, count - part), part};
  return ranges;
}

int64_t keys_of_slab(int64_t keys, int64_t most) {
  const int64_t width = divided(keys, divided(keys, most));
  return std::min(keys, divided(width, 128) * 128);
}

Tensor rows_of(const Tensor& x, Range rows, bool transposed) {
  const int64_t width = x.size(1);
  auto* first = static_cast<std::byte*>(const_cast<void*>(x.const_data_ptr())) +
                rows.begin * width * static_cast<int64_t>(x.element_size());
  std::array<int64_t, 2> sizes{rows.count, width}, strides{width, 1};
  if (transposed) {
    std::swap(sizes[0], sizes[1]);
    std::swap(strides[0], strides[1]);
  }
  return torch::stable::from_blob(first, sizes, strides, x.device(), x.scalar_type());
}

// out = a b, by cuBLAS: half types as they are, summed in float32.
void multiply_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // a reference to out
}

int64_t limit_of(int64_t k, int64_t candidates) {
  const int64_t limit = std::clamp<int64_t>(candidates, 1, k);
  STD_TORCH_CHECK(limit <= kMostPlaces, "cl_kernels: k is at most ", kMostPlaces, ", got ", limit);
  return limit;
}

// The memory of blocks whose rows do not fit in shared memory.
template <class T>
class Memory {
 public:
  Memory(const Tensor& like, int64_t limit) {
    if (!is_in_memory<T>(limit)) return;
    const int64_t bytes = buffer_places<T>(limit) * static_cast<int64_t>(sizeof(Packed<T>));
    buffers_.count = std::max<int64_t>(kBufferBytes / bytes, 1);
    tensor_ = torch::stable::new_empty(like, {buffers_.count * bytes}, ScalarType::Byte);
    buffers_.pairs = mutable_data<Packed<T>>(*tensor_);
  }

  const Buffers<T>& buffers() const { return buffers_; }

 private:
  std::optional<Tensor> tensor_;
  Buffers<T> buffers_{nullptr, 0};
};

// The best keys of each query.
template <class T>
void find_best(const Tensor& query, const Tensor& key, const Scoring<T>& scoring,
               const Best<T>& best) {
  const int64_t M = query.size(0), N = key.size(0), limit = limit_of(best.k, N);
  const Memory<T> memory(query, limit);
  if (M == 0) return;
  if (N == 0) return select_by_blocks(Scores<T>{scoring, {}, 0}, 0, M, best, 1, false, {});

  constexpr int64_t most = kScoreBytes / kQueries / sizeof(T);
  const int64_t width = keys_of_slab(N, most);
  const Tensor scores = empty(query, {kQueries, width});
  const Tensor queries = M < kQueries ? torch::stable::pad(query, {0, 0, 0, kQueries - M}) : query;
  int64_t next = 0;  // the first query without results
  for (const Range& q : cover(queries.size(0), kQueries)) {
    int64_t seen = 0;
    for (const Range& k : cover(N, width)) {
      multiply_into(scores, rows_of(queries, q, false), rows_of(key, k, true));
      const Slab<T> slab{mutable_data<T>(scores), q.begin, kQueries, k.begin, width};
      select_by_blocks(Scores<T>{scoring, slab, seen - k.begin}, next,
                       std::min(q.begin + kQueries, M), best, limit, seen > 0, memory.buffers());
      seen = k.begin + width;
    }
    next = q.begin + kQueries;
  }
}

void select_best(const Tensor& packed, const Tensor& counts, const Best<float>& best) {
  constexpr int64_t kManyRows = 512;  // enough warps to fill a GPU, a row each
  const int64_t rows = packed.size(0), parts = packed.size(1), capacity = packed.size(2);
  STD_TORCH_CHECK(parts * capacity <= kMostPlaces, "cl_kernels: at most ", kMostPlaces,
                  " survivors of a row, got ", parts * capacity);
  const Survivors survivors{data<int64_t>(packed), data<int32_t>(counts), static_cast<int>(parts),
                            static_cast<int>(capacity)};
  if (best.k <= kMostOfWarp && rows >= kManyRows) return select_by_warps(survivors, rows, best);
  const int64_t limit = limit_of(best.k, parts * capacity);
  const Memory<float> memory(packed, limit);
  select_by_blocks(survivors, rows, best, limit, memory.buffers());
}

template <class T>
Scoring<T> scoring_of(const Search& search) {
  return {optional_data<T>(search.query_factor), optional_data<T>(search.key_factor),
          KeptPairs<T>(search.pairs), optional_data<int64_t>(search.exclude_offsets),
          optional_data<int64_t>(search.exclude_keys)};
}

}  // namespace

Found topk(const Search& search) {
  const int64_t M = search.query.size(0), k = search.k;
  Tensor values = empty(search.query, {M, k}), indices = empty_indices(search.query, {M, k});
  by_accumulator(search.query, [&]<class T>(T) {
    find_best<T>(search.query, search.key, scoring_of<T>(search),
                 {mutable_data<T>(values), mutable_data<int64_t>(indices), k});
  });
  return {values, indices};
}

Found select_topk(const Tensor& packed, const Tensor& counts, int64_t k) {
  const int64_t rows = packed.size(0);
  Tensor values = torch::stable::new_empty(packed, {rows, k}, ScalarType::Float);
  Tensor indices = empty_indices(packed, {rows, k});
  select_best(packed, counts, {mutable_data<float>(values), mutable_data<int64_t>(indices), k});
  return {values, indices};
}

}  // namespace cl::cuda
