// Products of blocks and the transposition that they need, for tile_kernels.inl.
#include <type_traits>

#include "tile_kernels.h"

namespace cl::cpu {
namespace {

// As many numbers as a vector register holds.
template <class T>
using Vector __attribute__((vector_size(CL_VECTOR_BYTES), aligned(alignof(T)), may_alias)) = T;

template <class T>
constexpr int kWidth = CL_VECTOR_BYTES / sizeof(T);

// c += a b for ROWS rows and COLS vectors of columns, held in registers over the whole depth.
template <int ROWS, int COLS, class V, class T>
__attribute__((always_inline)) inline void multiply_block(const T* a, int64_t a_row, int64_t a_col,
                                                          const T* b, T* c, int64_t n, int64_t k) {
  constexpr int width = sizeof(V) / sizeof(T);
  V sum[ROWS][COLS];
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLS; ++j) sum[i][j] = *reinterpret_cast<const V*>(c + i * n + j * width);
  for (int64_t p = 0; p < k; ++p, a += a_col, b += n)
    for (int j = 0; j < COLS; ++j) {
      const V column = *reinterpret_cast<const V*>(b + j * width);
      for (int i = 0; i < ROWS; ++i) sum[i][j] += a[i * a_row] * column;
    }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLS; ++j) *reinterpret_cast<V*>(c + i * n + j * width) = sum[i][j];
}

template <int ROWS, class T>
void multiply_rows(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t n,
                   int64_t k) {
  constexpr int width = kWidth<T>;
  int64_t j = 0;
  for (; j + 4 * width <= n; j += 4 * width)
    multiply_block<ROWS, 4, Vector<T>>(a, a_row, a_col, b + j, c + j, n, k);
  for (; j + width <= n; j += width)
    multiply_block<ROWS, 1, Vector<T>>(a, a_row, a_col, b + j, c + j, n, k);
  for (; j < n; ++j) multiply_block<ROWS, 1, T>(a, a_row, a_col, b + j, c + j, n, k);
}

template <class T>
void multiply(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m, int64_t n,
              int64_t k) {
  constexpr int most = CL_VECTOR_BYTES == 64 ? 6 : 3;  // 4 * most sums fit the registers
  int64_t i = 0;
  for (; i + most <= m; i += most)
    multiply_rows<most>(a + i * a_row, a_row, a_col, b, c + i * n, n, k);
  for (; i + 2 <= m; i += 2) multiply_rows<2>(a + i * a_row, a_row, a_col, b, c + i * n, n, k);
  for (; i < m; ++i) multiply_rows<1>(a + i * a_row, a_row, a_col, b, c + i * n, n, k);
}

#ifndef __clang__  // which has no shuffle by a vector
// Rows of a square whose off-diagonal blocks of HALF x HALF change places, then smaller ones.
template <int HALF, class T>
__attribute__((always_inline)) inline void swap_blocks(Vector<T>* row) {
  using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  constexpr int width = kWidth<T>;
  using Lanes __attribute__((vector_size(CL_VECTOR_BYTES))) = Lane;
  Lanes upper, lower;  // which lanes of (a, b) make the new a and the new b
#pragma GCC unroll 16
  for (int l = 0; l < width; ++l) {
    upper[l] = l & HALF ? width + (l - HALF) : l;
    lower[l] = l & HALF ? width + l : l + HALF;
  }
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i) {
    if (i & HALF) continue;
    const Vector<T> a = row[i], b = row[i + HALF];
    row[i] = __builtin_shuffle(a, b, upper);
    row[i + HALF] = __builtin_shuffle(a, b, lower);
  }
  if constexpr (HALF > 1) swap_blocks<HALF / 2, T>(row);
}

// A square of as many rows as a register is wide.
template <class T>
__attribute__((always_inline)) inline void transpose_square(const T* x, int64_t x_row, T factor,
                                                            T* y, int64_t y_row) {
  constexpr int width = kWidth<T>;
  Vector<T> row[width];
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i)
    row[i] = factor * *reinterpret_cast<const Vector<T>*>(x + i * x_row);
  swap_blocks<width / 2, T>(row);
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i) *reinterpret_cast<Vector<T>*>(y + i * y_row) = row[i];
}
#else
template <class T>
void transpose_square(const T* x, int64_t x_row, T factor, T* y, int64_t y_row) {
  for (int i = 0; i < kWidth<T>; ++i)
    for (int j = 0; j < kWidth<T>; ++j) y[j * y_row + i] = factor * x[i * x_row + j];
}
#endif

template <class T>
void transpose(const T* x, int64_t rows, int64_t cols, T factor, T* y) {
  constexpr int64_t width = kWidth<T>;
  const int64_t whole_rows = rows - rows % width, whole_cols = cols - cols % width;
  for (int64_t i = 0; i < whole_rows; i += width)
    for (int64_t j = 0; j < whole_cols; j += width)
      transpose_square(x + i * cols + j, cols, factor, y + j * rows + i, rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j)
      y[j * rows + i] = factor * x[i * cols + j];
}

}  // namespace
}  // namespace cl::cpu
