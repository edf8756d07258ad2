// What is done to one tile of logits in memory, compiled once per instruction set.
#pragma once
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../statistics.h"

namespace cl::cpu {

constexpr int kStrip = 64;  // columns of a tile that is searched

// Which scores of a row are wanted: those s * factor that are better than (floor, floor_index),
// where of equal scores the one at the smaller index is better, and not ceiling or more. A ceiling
// of NaN is none.
template <class T>
struct Wanted {
  T factor, floor, ceiling;
  int64_t floor_index;
};

// What a fold (csrc/statistics.h) makes of a tile of logits. A dropped pair's logit is -inf, and it
// weighs exactly 0, even where the gradient or the value is not finite.
template <class Fold, class T = typename Fold::Number>
struct FoldKernels {
  // The state of every row, and of every column.
  void (*fold_rows)(const T* z, int64_t m, int64_t n, Fold* states);
  void (*fold_cols)(const T* z, int64_t m, int64_t n, Fold* states);

  // z[i, j] = row.grad[i] * weight(z[i, j], row.value[i]).
  void (*row_weights)(T* z, int64_t m, int64_t n, Upstream<T> row);

  // z[i, j] = col.grad[j] * weight(z[i, j], col.value[j]).
  void (*col_weights)(T* z, int64_t m, int64_t n, Upstream<T> col);

  // z[i, j] = row.grad[i] * weight(z[i, j], row.value[i])
  //         + col.grad[j] * weight(mirrored[i, j], col.value[j]); mirrored may be z.
  void (*row_col_weights)(T* z, const T* mirrored, int64_t m, int64_t n, Upstream<T> row,
                          Upstream<T> col);
};

template <class T, class List>
struct KernelsOfEach;
template <class T, template <class> class... FOLD>
struct KernelsOfEach<T, FoldList<FOLD...>> {
  using Type = std::tuple<FoldKernels<FOLD<T>>...>;
};
template <class T, class List>
using KernelsOf = typename KernelsOfEach<T, List>::Type;

// Strict bounds [m] or [n] on similarities; each may be null.
template <class T>
struct Bounds {
  const T *below, *above;
};

// Tiles are row-major [m, n].
template <class T>
struct TileKernels {
  const char* instruction_set;
  bool fast_products;  // whether multiply is to be preferred to BLAS at any size

  // c[m, n] = factor * (a b) for a[i, p] at a[i * a_row + p * a_col] and row-major b [k, n]. Terms
  // are added in an order that depends on k alone, and in short sums first.
  void (*multiply)(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m, int64_t n,
                   int64_t k, T factor);

  // c += a b.
  void (*add_product)(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m,
                      int64_t n, int64_t k);

  // y[cols, rows] = x^T for x [rows, cols].
  void (*transpose)(const T* x, int64_t rows, int64_t cols, T* y);

  // s[i, j] = scale * s[i, j], or -inf unless row i's (column j's) bounds hold.
  void (*scale_within_rows)(T* s, int64_t m, int64_t n, T scale, Bounds<T> bounds);
  void (*scale_within_cols)(T* s, int64_t m, int64_t n, T scale, Bounds<T> bounds);

  // z[i, j] += rows[i] + cols[j]; either may be null.
  void (*add_biases)(T* z, int64_t m, int64_t n, const T* rows, const T* cols);

  // z[i, j] = -inf unless (row_ids[i] == col_ids[j]) == keep_same.
  void (*drop)(T* z, int64_t m, int64_t n, const int64_t* row_ids, const int64_t* col_ids,
               bool keep_same);

  // z[i, j] = -inf unless similarity[i, j] <= ceiling[i] (ceiling[j]).
  void (*drop_above_rows)(T* z, int64_t m, int64_t n, const T* similarity, const T* ceiling);
  void (*drop_above_cols)(T* z, int64_t m, int64_t n, const T* similarity, const T* ceiling);

  KernelsOf<T, Folds> folds;

  // sums[i] += sum_j w[i, j], and sums[j] += sum_i w[i, j].
  void (*add_row_sums)(const T* w, int64_t m, int64_t n, T* sums);
  void (*add_col_sums)(const T* w, int64_t m, int64_t n, T* sums);

  // max of every row.
  void (*max_rows)(const T* z, int64_t m, int64_t n, T* max);

  // z[i, j] = exp(z[i, j] - max[i]), and its row sums.
  void (*exp_rows)(T* z, int64_t m, int64_t n, const T* max, T* sum);

  // y = x rounded to bfloat16 or float16, widened again.
  void (*widen_bfloat16)(const uint16_t* x, int64_t count, T* y);
  void (*widen_float16)(const uint16_t* x, int64_t count, T* y);
  void (*round_bfloat16)(const T* x, int64_t count, T* y);
  void (*round_float16)(const T* x, int64_t count, T* y);

  // <x, y>.
  T (*dot)(const T* x, const T* y, int64_t count);

  // y = a * y + b * x.
  void (*combine)(T a, T* y, T b, const T* x, int64_t count);

  // y = x / by; y may be x.
  void (*divide)(const T* x, int64_t count, T by, T* y);

  // x *= scale; returns <rows, x> of before, where a zero of x gives zero whatever its factor.
  T (*scale_and_dot)(const T* rows, T* x, int64_t count, T scale);

  // Whether every number is finite.
  bool (*all_finite)(const T* x, int64_t count);

  // Writes the scores s[i, j] * col_factor[j] * factor[i] of a tile [m, kStrip] that are wanted,
  // and a few more that equal a row's floor, with their positions i * kStrip + j; returns how many.
  // Column j is key first + j. Both buffers have a place for every element.
  int64_t (*find)(const T* s, int64_t m, const T* col_factor, int64_t first, const Wanted<T>* rows,
                  T* scores, int32_t* positions);

  template <class Fold>
  const FoldKernels<Fold>& of() const {
    return std::get<FoldKernels<Fold>>(folds);
  }
};

// The kernels compiled for one instruction set.
struct InstructionSet {
  TileKernels<float> of_float;
  TileKernels<double> of_double;

  template <class T>
  const TileKernels<T>& of() const {
    if constexpr (std::is_same_v<T, float>)
      return of_float;
    else
      return of_double;
  }
};

// Those that this machine has, the plainest first; none above the one that the environment variable
// CL_KERNELS_ISA names (avx512, avx2, baseline).
const std::vector<const InstructionSet*>& usable_instruction_sets();

// The last of these.
template <class T>
const TileKernels<T>& tile_kernels();

}  // namespace cl::cpu
