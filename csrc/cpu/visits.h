// What is made of the tiles: folds, softmax-weighted keys, gradients. Each function is one visit of
// all tiles; csrc/cuda/visits.h has the same functions.
#pragma once
#include "tile_loop.h"

namespace cl::cpu {

// The loop of logits [M, N] or, without keys, of the Gram matrix [M, M].
template <class T>
using Loop = TileLoop<T>;

inline void check_served(const Pairs&) {}  // all

// A fold of the logits of every row, and of every column unless its outputs are null. Of a Gram
// matrix: of every row.
template <class Fold, class T = typename Fold::Number>
void fold(const Loop<T>& loop, Outputs<T> row, Outputs<T> col);

// Log-sum-exps of rows, and sum_j exp(z_ij - lse_i) key_j, [M, width], which starts at 0. The loop
// isolates what is not finite.
template <class T>
void logsumexp_weighted_key(const Loop<T>& loop, T* row, T* weighted_key);

// Adds W key to the query's gradient and W^T query to the key's, multiplies both by the scale and
// makes those of the scale and of the biases. W_ij is the sum of both sides' upstream gradients,
// each times the fold's weight of z_ij. For a Gram matrix the second side is that of row j, of pair
// (j, i), and the query's gradient holds all: col and the key's are null. The loop isolates what is
// not finite.
template <class Fold, class T = typename Fold::Number>
void gradients(const Loop<T>& loop, Upstream<T> row, Upstream<T> col, const Gradients<T>& grad);

// Multiplies a gradient [rows, width] by the scale; returns <rows, gradient> of before, added in a
// fixed order, where a zero of the gradient gives zero.
template <class T>
double scale_gradient(const Embeddings<T>& rows, T* grad, T scale);

}  // namespace cl::cpu
