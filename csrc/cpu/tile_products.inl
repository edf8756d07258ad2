// Products of blocks and the transposition that they need, for tile_kernels.inl.
#include <cstring>
#include <type_traits>

#include "tile_kernels.h"

namespace cl::cpu {
namespace {

// As many numbers as a vector register holds.
template <class T>
using Vector __attribute__((vector_size(CL_VECTOR_BYTES), aligned(alignof(T)), may_alias)) = T;

template <class T>
constexpr int kWidth = CL_VECTOR_BYTES / sizeof(T);

// Sums over the depth are taken in three steps, so that rounding errors stay those of short sums
// however deep: terms of a panel, panels of a stack, stacks.
constexpr int64_t kPanel = 64, kStack = 8 * kPanel;

inline int64_t smaller(int64_t a, int64_t b) { return b < a ? b : a; }

// ROWS rows and COLS vectors of columns of a product.
template <int ROWS, int COLS, class V>
using Block = V[ROWS][COLS];

// sum += a b over a panel, in registers.
template <int ROWS, int COLS, class V, class T>
__attribute__((always_inline)) inline void multiply_panel(const T* a, int64_t a_row, int64_t a_col,
                                                          const T* b, int64_t n, int64_t k,
                                                          Block<ROWS, COLS, V>& sum) {
  constexpr int width = sizeof(V) / sizeof(T);
  for (int64_t p = 0; p < k; ++p, a += a_col, b += n)
    for (int j = 0; j < COLS; ++j) {
      const V column = *reinterpret_cast<const V*>(b + j * width);
      for (int i = 0; i < ROWS; ++i) sum[i][j] += a[i * a_row] * column;
    }
}

template <int ROWS, int COLS, class V>
__attribute__((always_inline)) inline void clear(Block<ROWS, COLS, V>& sum) {
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLS; ++j) sum[i][j] = V{};
}

// c = factor * (a b) over a stack, or c = factor * (c + a b).
template <bool ADD, int ROWS, int COLS, class V, class T>
__attribute__((always_inline)) inline void multiply_block(const T* a, int64_t a_row, int64_t a_col,
                                                          const T* b, T* c, int64_t n, int64_t k,
                                                          T factor) {
  constexpr int width = sizeof(V) / sizeof(T);
  if (ADD && n > 1024)  // c is not in the cache: the last additions would wait for it
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < COLS; ++j) __builtin_prefetch(c + i * n + j * width, 1);
  Block<ROWS, COLS, V> sum;
  if (ADD && k <= kPanel) {  // a single panel, as small problems have: its terms go onto c
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < COLS; ++j) sum[i][j] = *reinterpret_cast<V*>(c + i * n + j * width);
    multiply_panel<ROWS, COLS, V>(a, a_row, a_col, b, n, k, sum);
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < COLS; ++j)
        *reinterpret_cast<V*>(c + i * n + j * width) = factor * sum[i][j];
    return;
  }
  clear<ROWS, COLS, V>(sum);
  multiply_panel<ROWS, COLS, V>(a, a_row, a_col, b, n, smaller(kPanel, k), sum);
  if (k > kPanel) {  // registers hold one of the two sums
    Block<ROWS, COLS, V> total;
    std::memcpy(total, sum, sizeof sum);
    for (int64_t p = kPanel; p < k; p += kPanel) {
      clear<ROWS, COLS, V>(sum);
      multiply_panel<ROWS, COLS, V>(a + p * a_col, a_row, a_col, b + p * n, n,
                                    smaller(kPanel, k - p), sum);
      for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLS; ++j) total[i][j] += sum[i][j];
    }
    std::memcpy(sum, total, sizeof sum);
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLS; ++j) {
      V& out = *reinterpret_cast<V*>(c + i * n + j * width);
      out = factor * (ADD ? out + sum[i][j] : sum[i][j]);
    }
}

template <bool ADD, int ROWS, class T>
void multiply_rows(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t n, int64_t k,
                   T factor) {
  constexpr int width = kWidth<T>;
  int64_t j = 0;
  for (; j + 4 * width <= n; j += 4 * width)
    multiply_block<ADD, ROWS, 4, Vector<T>>(a, a_row, a_col, b + j, c + j, n, k, factor);
  for (; j + width <= n; j += width)
    multiply_block<ADD, ROWS, 1, Vector<T>>(a, a_row, a_col, b + j, c + j, n, k, factor);
  for (; j < n; ++j) multiply_block<ADD, ROWS, 1, T>(a, a_row, a_col, b + j, c + j, n, k, factor);
}

template <bool ADD, class T>
void multiply_stack(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m,
                    int64_t n, int64_t k, T factor) {
  constexpr int most = CL_VECTOR_BYTES == 64 ? 6 : 3;  // 4 * most sums fit the registers
  int64_t i = 0;
  for (; i + most <= m; i += most)
    multiply_rows<ADD, most>(a + i * a_row, a_row, a_col, b, c + i * n, n, k, factor);
  for (; i + 2 <= m; i += 2)
    multiply_rows<ADD, 2>(a + i * a_row, a_row, a_col, b, c + i * n, n, k, factor);
  for (; i < m; ++i) multiply_rows<ADD, 1>(a + i * a_row, a_row, a_col, b, c + i * n, n, k, factor);
}

template <class T>
void add_product(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m, int64_t n,
                 int64_t k) {
  for (int64_t p = 0; p < k; p += kStack)
    multiply_stack<true>(a + p * a_col, a_row, a_col, b + p * n, c, m, n, smaller(kStack, k - p),
                         T(1));
}

template <class T>
void multiply(const T* a, int64_t a_row, int64_t a_col, const T* b, T* c, int64_t m, int64_t n,
              int64_t k, T factor) {
  const auto last = [&](int64_t p) { return p + kStack >= k ? factor : T(1); };
  multiply_stack<false>(a, a_row, a_col, b, c, m, n, smaller(kStack, k), last(0));
  for (int64_t p = kStack; p < k; p += kStack)
    multiply_stack<true>(a + p * a_col, a_row, a_col, b + p * n, c, m, n, smaller(kStack, k - p),
                         last(p));
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
__attribute__((always_inline)) inline void transpose_square(const T* x, int64_t x_row, T* y,
                                                            int64_t y_row) {
  constexpr int width = kWidth<T>;
  Vector<T> row[width];
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i) row[i] = *reinterpret_cast<const Vector<T>*>(x + i * x_row);
  swap_blocks<width / 2, T>(row);
#pragma GCC unroll 16
  for (int i = 0; i < width; ++i) *reinterpret_cast<Vector<T>*>(y + i * y_row) = row[i];
}
#else
template <class T>
void transpose_square(const T* x, int64_t x_row, T* y, int64_t y_row) {
  for (int i = 0; i < kWidth<T>; ++i)
    for (int j = 0; j < kWidth<T>; ++j) y[j * y_row + i] = x[i * x_row + j];
}
#endif

template <class T>
void transpose(const T* x, int64_t rows, int64_t cols, T* y) {
  constexpr int64_t width = kWidth<T>;
  const int64_t whole_rows = rows - rows % width, whole_cols = cols - cols % width;
  for (int64_t i = 0; i < whole_rows; i += width)
    for (int64_t j = 0; j < whole_cols; j += width)
      transpose_square(x + i * cols + j, cols, y + j * rows + i, rows);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j)
      y[j * rows + i] = x[i * cols + j];
}

}  // namespace
}  // namespace cl::cpu
