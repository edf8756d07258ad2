// What is done to one tile of logits in memory, compiled once per instruction set.
#pragma once
#include <cstdint>

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

// Tiles are row-major [m, n]. Logits are scale * s with scale >= 0; a dropped pair has s = -inf.
template <class T>
struct TileKernels {
  const char* instruction_set;
  bool fast_products;  // whether multiply is to be preferred to BLAS at any size

  // c[m, n] = a b for a[i, p] at a[i * a_row + p * a_col] and row-major b [k, n]. Terms are added
  // in an order that depends on k alone, and in short sums first.
  void (*multiply)(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m, int64_t n,
                   int64_t k);

  // c += a b.
  void (*add_product)(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m,
                      int64_t n, int64_t k);

  // y[cols, rows] = factor * x^T for x [rows, cols].
  void (*transpose)(const T* x, int64_t rows, int64_t cols, T factor, T* y);

  // max and sum of exp(scale * (s - max)) of every row.
  void (*fold_rows)(const T* s, int64_t m, int64_t n, T scale, T* max, T* sum);

  // The same of every column.
  void (*fold_cols)(const T* s, int64_t m, int64_t n, T scale, T* max, T* sum);

  // max of every row.
  void (*max_rows)(const T* s, int64_t m, int64_t n, T* max);

  // s[i, j] = exp(scale * (s[i, j] - max[i])), and its row sums.
  void (*exp_rows)(T* s, int64_t m, int64_t n, T scale, const T* max, T* sum);

  // s[i, j] = grad[i] * exp(scale * s[i, j] - lse[i]).
  void (*row_weights)(T* s, int64_t m, int64_t n, T scale, const T* grad, const T* lse);

  // s[i, j] = grad[j] * exp(scale * s[i, j] - lse[j]).
  void (*col_weights)(T* s, int64_t m, int64_t n, T scale, const T* grad, const T* lse);

  // s[i, j] = row_grad[i] * exp(scale * s[i, j] - row_lse[i])
  //         + col_grad[j] * exp(scale * mirrored[i, j] - col_lse[j]); mirrored may be s, and is
  // lost.
  void (*row_col_weights)(T* s, T* mirrored, int64_t m, int64_t n, T scale, const T* row_grad,
                          const T* row_lse, const T* col_grad, const T* col_lse);

  // value[i, j] = fill unless (row_ids[i] == col_ids[j]) == keep_same.
  void (*drop)(T* values, int64_t m, int64_t n, const int64_t* row_ids, const int64_t* col_ids,
               bool keep_same, T fill);

  // y = x rounded to bfloat16 or float16, widened again.
  void (*widen_bfloat16)(const uint16_t* x, int64_t count, T* y);
  void (*widen_float16)(const uint16_t* x, int64_t count, T* y);
  void (*round_bfloat16)(const T* x, int64_t count, T* y);
  void (*round_float16)(const T* x, int64_t count, T* y);

  // <x, y>.
  T (*dot)(const T* x, const T* y, int64_t count);

  // y = a * y + b * x.
  void (*combine)(T a, T* y, T b, const T* x, int64_t count);

  // x *= scale; returns <rows, x> of before, where a zero of x gives zero whatever its factor.
  T (*scale_and_dot)(const T* rows, T* x, int64_t count, T scale);

  // Whether every number is finite.
  bool (*all_finite)(const T* x, int64_t count);

  // Writes the scores s[i, j] * col_factor[j] * factor[i] of a tile [m, kStrip] that are wanted,
  // and a few more that equal a row's floor, with their positions i * kStrip + j; returns how many.
  // Column j is key first + j. Both buffers have a place for every element.
  int64_t (*find)(const T* s, int64_t m, const T* col_factor, int64_t first, const Wanted<T>* rows,
                  T* scores, int32_t* positions);
};

// The best set that this machine has, or the one that CL_KERNELS_ISA names (avx512, avx2,
// baseline), if the machine has it.
template <class T>
const TileKernels<T>& tile_kernels();

}  // namespace cl::cpu
