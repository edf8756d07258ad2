// Exact top-K of the scores of queries and keys, which are never held.
#pragma once
#include "../search.h"
#include "../selection.h"

namespace cl::cpu {

Found topk(const Search& search);

// The k best of packed [M, parts, size], of which counts [M, parts] are valid.
Found select_topk(const Tensor& packed, const Tensor& counts, int64_t k);

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
