// Exact top-K of the scores of queries and keys, which are never held.
#pragma once
#include <tuple>

#include "../selection.h"
#include "../stable.h"

namespace cl::cpu {

// Values and indices [M, k], best first; see cl_kernels/search/topk.py.
using Found = std::tuple<Tensor, Tensor>;

// What decides about a pair beside its inner product and the filters; each may be missing.
struct SearchOptions {
  const std::optional<Tensor>&query_factor, &key_factor;       // [M], [N]
  const std::optional<Tensor>&exclude_offsets, &exclude_keys;  // [M + 1], [nnz] rising in each row
  const std::optional<Tensor>&below, &above;                   // [M]
};

Found topk(const Tensor& query, const Tensor& key, int64_t k, const SearchOptions& search,
           const Options& options);

// Pairs [rows, parts, size], of which the first counts [rows, parts] of each part are valid.
template <class T>
struct Parts {
  const Packed<T>* pairs;
  const int32_t* counts;
  int64_t rows, parts, size;
};

// Writes the k best pairs of each row.
template <class T>
void merge(const Parts<T>& from, int64_t k, T* values, int64_t* indices);

}  // namespace cl::cpu
