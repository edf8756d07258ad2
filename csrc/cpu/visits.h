// What is made of the tiles: folds, softmax-weighted keys, gradients. Each function is one visit of
// all tiles; csrc/cuda/visits.h has the same functions.
#pragma once
#include "tile_loop.h"

namespace cl::cpu {

// The loop of logits [M, N] or, without keys, of the Gram matrix [M, M].
template <class T>
using Loop = TileLoop<T>;

// A fold of the logits of every row, and of every column unless its outputs are null. Of a Gram
// matrix: of every row.
template <class Fold, class T = typename Fold::Number>
void fold(const Loop<T>& loop, Outputs<T> row, Outputs<T> col);

// Log-sum-exps of rows, and sum_j exp(z_ij - lse_i) key_j, [M, width], which starts at 0. The loop
// isolates what is not finite.
template <class T>
void logsumexp_weighted_key(const Loop<T>& loop, T* row, T* weighted_key);

// Adds W key to grad_query and W^T query to grad_key (each may be null), multiplies both by the
// scale and writes the gradient of the scale. W_ij is the sum of both sides' upstream gradients,
// each times the fold's weight of z_ij. For a Gram matrix the second side is that of row j, of pair
// (j, i), and grad_query holds all: col and grad_key are null. Gradients start at 0. The loop
// isolates what is not finite.
template <class Fold, class T = typename Fold::Number>
void gradients(const Loop<T>& loop, Upstream<T> row, Upstream<T> col, T* grad_query, T* grad_key,
               T* grad_scale);

// Multiplies a gradient [rows, width] by the scale; returns <rows, gradient> of before, added in a
// fixed order, where a zero of the gradient gives zero.
template <class T>
double scale_gradient(const Embeddings<T>& rows, T* grad, T scale);

}  // namespace cl::cpu
