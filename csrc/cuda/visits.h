// What is made of the slabs: folds, softmax-weighted keys, gradients. The same functions as in
// csrc/cpu/visits.h, on contiguous CUDA tensors.
#pragma once
#include "slabs.h"

namespace cl::cuda {

template <class T>
using Loop = Slabs<T>;

template <class Fold, class T = typename Fold::Number>
void fold(const Loop<T>& slabs, Outputs<T> row, Outputs<T> col);

template <class T>
void logsumexp_weighted_key(const Loop<T>& slabs, T* row, T* weighted_key);

template <class Fold, class T = typename Fold::Number>
void gradients(const Loop<T>& slabs, Upstream<T> row, Upstream<T> col, T* grad_query, T* grad_key,
               T* grad_scale);

}  // namespace cl::cuda
