// What the operations ask of their arguments, so that a call by hand ends with an error that names
// the argument. The Python side has its own checks; no data is read but by check_lists.
#pragma once
#include <limits>
#include <sstream>
#include <string>

#include "search.h"
#include "tensors.h"

namespace cl {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::string describe(ScalarType dtype, const Sizes& sizes, const Tensor& on) {
  std::ostringstream text;
  text << dtype << " [";
  for (size_t d = 0; d < sizes.size(); ++d) text << (d ? ", " : "") << sizes[d];
  text << "] on " << (on.is_cuda() ? "cuda:" : "cpu");
  if (on.is_cuda()) text << on.get_device_index();
  return text.str();
}

inline std::string describe(const Tensor& x) {
  return describe(x.scalar_type(), x.sizes(), x) + (x.is_contiguous() ? "" : ", not contiguous");
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// A contiguous tensor of this dtype and these sizes, on the device of another.
inline void check_tensor(const char* name, const Tensor& x, const Tensor& like, ScalarType dtype,
                         std::initializer_list<int64_t> shape) {
  const Sizes sizes(shape);
  const bool fits = x.scalar_type() == dtype && x.sizes().equals(sizes) && x.is_contiguous() &&
                    same_device(x, like);
  STD_TORCH_CHECK(fits, "cl_kernels: ", name, ": expected contiguous ",
                  describe(dtype, sizes, like), ", got ", describe(x));
}

// One number of the accumulation type for each of count rows.
inline void check_vector(const char* name, const Tensor& x, const Tensor& like, int64_t count) {
  check_tensor(name, x, like, accumulator(like), {count});
}

inline void check_optional_vector(const char* name, const std::optional<Tensor>& x,
                                  const Tensor& like, int64_t count) {
  if (x) check_vector(name, *x, like, count);
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_embeddings(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(is_floating(x.scalar_type()) && x.dim() == 2 && x.is_contiguous(),
                  "cl_kernels: ", name, ": expected a contiguous matrix of Float, Double, Half or ",
                  "BFloat16, got ", describe(x));
}

inline void check_key(const Tensor& query, const Tensor& key) {
  check_embeddings("key", key);
  check_tensor("key", key, query, query.scalar_type(), {key.size(0), query.size(1)});
}

inline void check_guide(const Pairs& pairs, const Tensor& like, int64_t rows, int64_t cols) {
  const auto& [query, key, ceiling] = std::tie(pairs.query_guide, pairs.key_guide, pairs.ceiling);
  STD_TORCH_CHECK(
      query.has_value() == ceiling.has_value() && key.has_value() == ceiling.has_value(),
      "cl_kernels: query_guide, key_guide, ceiling: expected all or none, got some");
  if (!ceiling) return;
  STD_TORCH_CHECK(query->dim() == 2, "cl_kernels: query_guide: expected a matrix, got ",
                  describe(*query));
  check_tensor("query_guide", *query, like, accumulator(like), {rows, query->size(1)});
  check_tensor("key_guide", *key, like, accumulator(like), {cols, query->size(1)});
}

// What says which of rows x cols pairs of embeddings like these count.
inline void check_pairs(const Pairs& pairs, const Tensor& like, int64_t rows, int64_t cols) {
  const size_t count = pairs.keep_same.size();
  STD_TORCH_CHECK(count <= kMostFilters, "cl_kernels: keep_same: expected at most ", kMostFilters,
                  " filters, got ", count);
  STD_TORCH_CHECK(pairs.query_ids.size() == count && pairs.key_ids.size() == count,
                  "cl_kernels: query_ids, key_ids: expected as many as keep_same, ", count,
                  ", got ", pairs.query_ids.size(), " and ", pairs.key_ids.size());
  for (size_t f = 0; f < count; ++f) {
    check_tensor("query_ids", pairs.query_ids[f], like, ScalarType::Long, {rows});
    check_tensor("key_ids", pairs.key_ids[f], like, ScalarType::Long, {cols});
  }
  for (const auto& [name, vector, of_keys] : kPairsVectors)
    check_optional_vector(name, pairs.*vector, like, of_keys ? cols : rows);
  check_guide(pairs, like, rows, cols);
}

inline void check_call(const Call& call, const Tensor& scale, const Tensor& like, int64_t rows,
                       int64_t cols) {
  check_tensor("scale", scale, like, accumulator(like), {});
  check_pairs(call.pairs, like, rows, cols);
  STD_TORCH_CHECK(is_floating(call.compute_dtype), "cl_kernels: compute_dtype: expected Float, ",
                  "Double, Half or BFloat16, got ", call.compute_dtype);
}

inline void check_logits(const Logits& logits, bool is_self) {
  const auto& [query, key, scale, call] = logits;
  check_embeddings("query", query);
  STD_TORCH_CHECK(key.has_value() != is_self, "cl_kernels: key: expected ",
                  is_self ? "None, got " + describe(*key) : "a matrix, got None");
  if (key) check_key(query, *key);
  check_call(call, scale, query, query.size(0), logits.keys().size(0));
}

// Upstream gradients of the sides, or their statistics.
inline void check_sides(const char* name, const std::vector<Tensor>& of_sides, const Logits& logits,
                        size_t sides) {
  STD_TORCH_CHECK(of_sides.size() == sides, "cl_kernels: ", name, ": expected ", sides, ", got ",
                  of_sides.size());
  check_vector(name, of_sides[0], logits.query, logits.query.size(0));
  if (sides > 1) check_vector(name, of_sides[1], logits.query, logits.keys().size(0));
}

inline void check_needs(const std::vector<bool>& needs, size_t count) {
  STD_TORCH_CHECK(needs.size() == count, "cl_kernels: needs: expected ", count, ", got ",
                  needs.size());
}

inline void check_bias_needs(const Pairs& pairs, bool query_bias, bool key_bias) {
  STD_TORCH_CHECK((!query_bias || pairs.query_bias) && (!key_bias || pairs.key_bias),
                  "cl_kernels: needs: expected no gradient of a bias that is not given, got one");
}

inline void check_k(int64_t k) {
  STD_TORCH_CHECK(k >= 1, "cl_kernels: k: expected at least 1, got ", k);
}

inline void check_list_tensors(const std::optional<Tensor>& offsets,
                               const std::optional<Tensor>& keys, const Tensor& query) {
  STD_TORCH_CHECK(offsets.has_value() == keys.has_value(),
                  "cl_kernels: exclude_keys: expected as exclude_offsets, both or none, got one");
  if (!offsets) return;
  check_tensor("exclude_offsets", *offsets, query, ScalarType::Long, {query.size(0) + 1});
  check_tensor("exclude_keys", *keys, query, ScalarType::Long, {keys->numel()});
}

// What is in the lists, whose tensors have been checked and are in host memory.
inline void check_lists(const std::optional<Tensor>& offsets, const std::optional<Tensor>& keys) {
  if (!offsets) return;
  const int64_t rows = offsets->numel() - 1, count = keys->numel();
  const int64_t *offset = data<int64_t>(*offsets), *key = data<int64_t>(*keys);
  bool rises = offset[0] == 0 && offset[rows] == count;
  for (int64_t i = 0; i < rows; ++i) rises &= offset[i] <= offset[i + 1];
  STD_TORCH_CHECK(rises, "cl_kernels: exclude_offsets: expected to rise from 0 to ", count,
                  ", the number of exclude_keys, got other numbers");
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t p = offset[i] + 1; p < offset[i + 1]; ++p)
      STD_TORCH_CHECK(key[p] >= key[p - 1],
                      "cl_kernels: exclude_keys: expected numbers that do not ",
                      "fall within a row, got ", key[p], " in row ", i);
}

inline void check_search(const Search& search) {
  const auto& [query, key, k, query_factor, key_factor, offsets, keys, pairs] = search;
  check_embeddings("query", query);
  check_key(query, key);
  check_k(k);
  STD_TORCH_CHECK(key.size(0) <= std::numeric_limits<uint32_t>::max(),
                  "cl_kernels: key: expected fewer than 2^32 rows, got ", key.size(0));
  check_optional_vector("query_factor", query_factor, query, query.size(0));
  check_optional_vector("key_factor", key_factor, query, key.size(0));
  check_list_tensors(offsets, keys, query);
  check_pairs(pairs, query, query.size(0), key.size(0));
}

inline void check_survivors(const Tensor& packed, const Tensor& counts, int64_t k) {
  STD_TORCH_CHECK(
      packed.dim() == 3 && packed.scalar_type() == ScalarType::Long && packed.is_contiguous(),
      "cl_kernels: packed: expected contiguous Long [M, parts, size], got ", describe(packed));
  check_tensor("counts", counts, packed, ScalarType::Int, {packed.size(0), packed.size(1)});
  check_k(k);
}

}  // namespace cl
