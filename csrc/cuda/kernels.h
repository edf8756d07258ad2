// What CUDA kernels do to a slab of logits. Every function enqueues its work on the current stream
// of the current device and returns; nothing waits, and the scale is read on the device.
#pragma once
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "../statistics.h"
#include "kept_pairs.h"

namespace cl::cuda {

using torch::headeronly::ScalarType;

inline int64_t divided(int64_t count, int64_t part) { return (count + part - 1) / part; }

// What all slabs of a call share.
template <class T>
struct Problem {
  const T* scale;
  const bool* query_nonfinite;  // [M]; null if nobody has looked
  const bool* key_nonfinite;    // [N]
  KeptPairs<T> pairs;
};

// Pairs of queries [i0, i0 + m) and keys [j0, j0 + n).
template <class T>
struct Slab {
  T* dots;  // [m, n]
  int64_t i0, m, j0, n;
};

// out[rows, width] = x in T, rounded to the compute dtype. With nonfinite, a row that holds a NaN
// or an infinity becomes zero and is flagged there.
template <class T>
void round_rows(const void* x, ScalarType dtype, ScalarType compute_dtype, int64_t rows,
                int64_t width, T* out, bool* nonfinite);

template <class Fold, class T = typename Fold::Number>
struct FoldKernels {
  static void start(Fold* states, int64_t count);

  // Merges the slab's rows into the states of all M queries.
  static void fold_rows(const Problem<T>& problem, const Slab<T>& slab, Fold* rows);

  // Merges the slab's columns into the states of all N keys.
  static void fold_cols(const Problem<T>& problem, const Slab<T>& slab, Fold* cols);

  static void write(const Fold* states, int64_t count, Outputs<T> out);
};

// dots[i, j] = row.grad[i] * weight(z_ij, row.value[i]) + col.grad[j] * weight(z_ij, col.value[j]),
// exactly 0 where a pair is dropped. A null grad is all ones; a side without values has no term.
// For a Gram matrix the second term is that of row j, of pair (j, i).
template <class Fold, class T = typename Fold::Number>
void weigh(const Problem<T>& problem, const Slab<T>& slab, Upstream<T> row, Upstream<T> col,
           bool is_self);

constexpr int kPartialSums = 512;

// grad *= scale; inner = factor * <x, grad> of before, added in a fixed order. A zero of grad gives
// zero whatever x holds. partial [kPartialSums] is scratch.
template <class T>
void scale_and_dot(const T* x, T* grad, int64_t count, const T* scale, double factor,
                   double* partial, T* inner);

}  // namespace cl::cuda
