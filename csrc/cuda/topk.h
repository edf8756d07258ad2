// Top-K of whole tensors: products by cuBLAS a slab at a time, and the selection of survivors.
#pragma once
#include "select.h"
#include "slabs.h"

namespace cl::cuda {

// The best keys of each query, from contiguous tensors.
template <class T>
void find_best(const Tensor& query, const Tensor& key, const Search<T>& search,
               const Best<T>& best);

// The best of packed [M, parts, capacity], counts [M, parts].
void select_best(const Tensor& packed, const Tensor& counts, const Best<float>& best);

}  // namespace cl::cuda
