// What is made of the tiles: log-sum-exps, softmax-weighted mean keys, gradients.
//
// Each function is one visit of all tiles. Tensors are contiguous CPU tensors whose shapes and
// dtypes the Python side has checked; results are in T.
#pragma once
#include "tile_loop.h"

namespace cl::cpu {

// Log-sum-exps of rows and, unless col is null, of columns. For a Gram matrix col is row.
template <class T>
void logsumexp(const TileLoop<T>& loop, T* row, T* col);

// Log-sum-exps of rows, and the mean key under each row's softmax, [M, width], which starts at 0.
template <class T>
void logsumexp_mean_key(TileLoop<T>& loop, T* row, T* mean_key);

// A statistic per row or column, and the gradient with respect to it.
template <class T>
struct Upstream {
  const T* grad;
  const T* lse;
};

// Adds W key to grad_query and W^T query to grad_key (each may be null), multiplies both by the
// scale and returns the gradient of the scale. W_ij = g_i exp(s_ij - r_i) + h_j exp(s_ij - c_j);
// without column statistics only the first term. For a Gram matrix col is row and grad_key is
// grad_query. Both gradients start at 0.
template <class T>
T gradients(TileLoop<T>& loop, Upstream<T> row, Upstream<T> col, T scale, T* grad_query,
            T* grad_key);

}  // namespace cl::cpu
