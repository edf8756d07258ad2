// What is made of the slabs: folds, softmax-weighted keys, gradients. The same functions as in
// csrc/cpu/visits.h, on contiguous CUDA tensors.
#pragma once
#include "slabs.h"

namespace cl::cuda {

template <class T>
using Loop = Slabs<T>;

inline void check_served(const Pairs& pairs) {
  STD_TORCH_CHECK(!pairs.query_bias && !pairs.key_bias && !pairs.ceiling,
                  "cl_kernels: the CUDA kernels do not serve query_bias, key_bias and guide");
}

template <class Fold, class T = typename Fold::Number>
void fold(const Loop<T>& slabs, Outputs<T> row, Outputs<T> col);

template <class T>
void logsumexp_weighted_key(const Loop<T>& slabs, T* row, T* weighted_key);

template <class Fold, class T = typename Fold::Number>
void gradients(const Loop<T>& slabs, Upstream<T> row, Upstream<T> col, const Gradients<T>& grad);

}  // namespace cl::cuda
