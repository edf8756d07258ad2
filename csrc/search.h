// What a search for the best keys of each query is told, and what it finds.
#pragma once
#include <tuple>

#include "pairs.h"

namespace cl {

// Scores <query_i, key_j> * key_factor[j] * query_factor[i], of which the k best of each query are
// wanted. What is missing does not apply; the bounds of the pairs are on scores.
struct Search {
  const Tensor &query, &key;  // [M, D], [N, D]
  int64_t k;
  const std::optional<Tensor>&query_factor, &key_factor;  // [M], [N]
  // Keys to leave out of each query's, in rising order: offsets into them, [M + 1], and their
  // numbers. Numbers outside of [0, N), such as padding, are keys that are never met.
  const std::optional<Tensor>&exclude_offsets, &exclude_keys;
  const Pairs& pairs;
};

// Values and indices [M, k], best first; see cl_kernels/search/topk.py.
using Found = std::tuple<Tensor, Tensor>;

}  // namespace cl
