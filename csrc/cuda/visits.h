// What is made of the slabs: log-sum-exps, softmax-weighted mean keys, gradients. The same
// functions as in csrc/cpu/visits.h, on contiguous CUDA tensors.
#pragma once
#include "slabs.h"

namespace cl::cuda {

// Log-sum-exps of rows and, unless col is null, of columns.
template <class T>
void logsumexp(const Slabs<T>& slabs, T* row, T* col);

// Log-sum-exps of rows, and the mean key under each row's softmax, [M, width], which starts at 0.
template <class T>
void logsumexp_mean_key(const Slabs<T>& slabs, T* row, T* mean_key);

// Adds W key to grad_query and W^T query to grad_key (each may be null), multiplies both by the
// scale and writes the gradient of the scale. W_ij = g_i exp(s_ij - r_i) + h_j exp(s_ij - c_j);
// without column statistics only the first term. For a Gram matrix col is row, and grad_key is
// null: W is symmetric. The gradients start at 0.
template <class T>
void gradients(const Slabs<T>& slabs, const Upstream<T>& row, const Upstream<T>& col, T* grad_query,
               T* grad_key, T* grad_scale);

}  // namespace cl::cuda
