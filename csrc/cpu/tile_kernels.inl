// Bodies of TileKernels, included by one file per instruction set, which defines CL_ISA.
//
// Plain loops that GCC and Clang vectorise. Only headers without inline functions that other files
// use may be included here: the linker could keep the copy compiled for the wrong machine.
#include "../statistics.h"
#include "exp.h"
#include "tile_kernels.h"
#include "tile_products.inl"

namespace cl::cpu {
namespace {

constexpr int kLanes = 64;  // partial sums of a row: enough to hide the adder's latency

template <class T>
T larger(T a, T b) {
  return b > a ? b : a;  // a NaN never wins: it shows in the sum
}

template <class T>
T row_max(const T* s, int64_t n) {
  T best[kLanes];
  for (int l = 0; l < kLanes; ++l) best[l] = kLowest<T>;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int l = 0; l < kLanes; ++l) best[l] = larger(best[l], s[j + l]);
  for (int l = 0; j < n; ++j, ++l) best[l] = larger(best[l], s[j]);
  for (int half = kLanes / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) best[l] = larger(best[l], best[l + half]);
  return best[0];
}

template <class T>
T sum_lanes(T* lanes) {
  for (int half = kLanes / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

template <class T>
void fold_rows(const T* s, int64_t m, int64_t n, T scale, T* max, T* sum) {
  for (int64_t i = 0; i < m; ++i, s += n) {
    const T top = row_max(s, n);
    T lanes[kLanes] = {};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += exp_nonpositive((s[j + l] - top) * scale);
    for (int l = 0; j < n; ++j, ++l) lanes[l] += exp_nonpositive((s[j] - top) * scale);
    max[i] = top;
    sum[i] = sum_lanes(lanes);
  }
}

template <class T>
void fold_cols(const T* __restrict s, int64_t m, int64_t n, T scale, T* __restrict max,
               T* __restrict sum) {
  for (int64_t j = 0; j < n; ++j) {
    max[j] = kLowest<T>;
    sum[j] = 0;
  }
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) max[j] = larger(max[j], s[i * n + j]);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) sum[j] += exp_nonpositive((s[i * n + j] - max[j]) * scale);
}

template <class T>
void max_rows(const T* s, int64_t m, int64_t n, T* max) {
  for (int64_t i = 0; i < m; ++i) max[i] = row_max(s + i * n, n);
}

template <class T>
void exp_rows(T* s, int64_t m, int64_t n, T scale, const T* max, T* sum) {
  for (int64_t i = 0; i < m; ++i, s += n) {
    const T top = max[i];
    for (int64_t j = 0; j < n; ++j) s[j] = exp_nonpositive((s[j] - top) * scale);
    T lanes[kLanes] = {};
    int64_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
      for (int l = 0; l < kLanes; ++l) lanes[l] += s[j + l];
    for (int l = 0; j < n; ++j, ++l) lanes[l] += s[j];
    sum[i] = sum_lanes(lanes);
  }
}

// Logits are rounded before lse is taken off them, as they were for lse. A fused multiply-add would
// keep what lse has lost: at logits of 1e6 weights would be off by a quarter.
template <class T>
void scale_row(T* s, int64_t n, T scale) {
  for (int64_t j = 0; j < n; ++j) s[j] *= scale;
}

template <class T>
void row_weights(T* s, int64_t m, int64_t n, T scale, const T* grad, const T* lse) {
  for (int64_t i = 0; i < m; ++i, s += n) {
    const T g = grad[i], r = lse[i];
    scale_row(s, n, scale);
    for (int64_t j = 0; j < n; ++j) s[j] = g * exp_nonpositive(s[j] - r);
  }
}

template <class T>
void col_weights(T* __restrict s, int64_t m, int64_t n, T scale, const T* __restrict grad,
                 const T* __restrict lse) {
  for (int64_t i = 0; i < m; ++i, s += n) {
    scale_row(s, n, scale);
    for (int64_t j = 0; j < n; ++j) s[j] = grad[j] * exp_nonpositive(s[j] - lse[j]);
  }
}

template <class T>
void row_col_weights(T* s, T* mirrored, int64_t m, int64_t n, T scale, const T* row_grad,
                     const T* row_lse, const T* __restrict col_grad, const T* __restrict col_lse) {
  for (int64_t i = 0; i < m; ++i, s += n, mirrored += n) {
    const T g = row_grad[i], r = row_lse[i];
    scale_row(s, n, scale);
    if (mirrored != s) scale_row(mirrored, n, scale);
    for (int64_t j = 0; j < n; ++j)
      s[j] =
          g * exp_nonpositive(s[j] - r) + col_grad[j] * exp_nonpositive(mirrored[j] - col_lse[j]);
  }
}

template <class T>
void drop(T* values, int64_t m, int64_t n, const int64_t* row_ids, const int64_t* col_ids,
          bool keep_same, T fill) {
  for (int64_t i = 0; i < m; ++i, values += n) {
    const int64_t id = row_ids[i];
    if (keep_same)
      for (int64_t j = 0; j < n; ++j) values[j] = id == col_ids[j] ? values[j] : fill;
    else
      for (int64_t j = 0; j < n; ++j) values[j] = id != col_ids[j] ? values[j] : fill;
  }
}

float widened_bfloat16(uint16_t x) { return bit_cast<float>(static_cast<uint32_t>(x) << 16); }

float widened_float16(uint16_t x) {
  const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16;
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  return bit_cast<float>(sign | ((x & 0x7fff) < 0x7c00 ? finite : magnitude | 0x7f800000u));
}

float rounded_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t even = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return x == x ? bit_cast<float>(even) : x;
}

float rounded_float16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), sign = bits & 0x80000000u;
  const uint32_t magnitude = bits ^ sign;
  const float absolute = bit_cast<float>(magnitude);
  const float subnormal = (absolute + 0.5f) - 0.5f;  // floats in [0.5, 1) are 2^-24 apart
  const float normal = bit_cast<float>((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) & ~0x1fffu);
  const float infinity = bit_cast<float>(0x7f800000u);
  const float rounded = absolute < 0x1p-14f ? subnormal : absolute >= 65520.f ? infinity : normal;
  return x == x ? bit_cast<float>(bit_cast<uint32_t>(rounded) | sign) : x;
}

template <class T, float (*widened)(uint16_t)>
void widen(const uint16_t* __restrict x, int64_t count, T* __restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] = widened(x[i]);
}

template <class T, float (*rounded)(float)>
void round_to(const T* __restrict x, int64_t count, T* __restrict y) {
  for (int64_t i = 0; i < count; ++i) y[i] = rounded(static_cast<float>(x[i]));
}

template <class T>
T dot(const T* x, const T* y, int64_t count) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * y[i + l];
  for (int l = 0; i < count; ++i, ++l) lanes[l] += x[i] * y[i];
  return sum_lanes(lanes);
}

template <class T>
void combine(T a, T* __restrict y, T b, const T* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = a * y[i] + b * x[i];
}

template <class T>
T scale_and_dot(const T* __restrict rows, T* __restrict x, int64_t count, T scale) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] == 0 ? T(0) : rows[i + l] * x[i + l];
  for (int l = 0; i < count; ++i, ++l) lanes[l] += x[i] == 0 ? T(0) : rows[i] * x[i];
  for (i = 0; i < count; ++i) x[i] *= scale;
  return sum_lanes(lanes);
}

template <class T>
bool all_finite(const T* x, int64_t count) {
  T lanes[kLanes] = {};  // 0 * x is 0, or NaN for a number that is not finite
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += x[i + l] * T(0);
  for (int l = 0; i < count; ++i, ++l) lanes[l] += x[i] * T(0);
  return sum_lanes(lanes) == T(0);
}

template <bool CLOSED, class T>
__attribute__((always_inline)) inline int64_t find_in_row(const T* __restrict s,
                                                          const T* __restrict col_factor,
                                                          const Wanted<T>& row, int32_t position,
                                                          T* __restrict scores,
                                                          int32_t* __restrict positions) {
  constexpr int word = sizeof(uint64_t);
  const T factor = row.factor, floor = row.floor, ceiling = row.ceiling;
  T score[kStrip];
  uint8_t wanted[kStrip];
  for (int j = 0; j < kStrip; ++j) {
    score[j] = s[j] * col_factor[j] * factor;
    wanted[j] = (CLOSED ? score[j] >= floor : score[j] > floor) & !(score[j] >= ceiling);
  }
  int64_t count = 0;
  for (int j = 0; j < kStrip; j += word) {
    uint64_t any;
    std::memcpy(&any, wanted + j, word);
    if (!any) continue;
    for (int l = j; l < j + word; ++l) {
      scores[count] = score[l];
      positions[count] = position + l;
      count += wanted[l];
    }
  }
  return count;
}

template <class T>
int64_t find(const T* s, int64_t m, const T* col_factor, int64_t first, const Wanted<T>* rows,
             T* scores, int32_t* positions) {
  int64_t count = 0;
  for (int64_t i = 0; i < m; ++i, s += kStrip) {
    const auto in_row = first < rows[i].floor_index ? find_in_row<true, T> : find_in_row<false, T>;
    count += in_row(s, col_factor, rows[i], i * kStrip, scores + count, positions + count);
  }
  return count;
}

template <class T>
constexpr TileKernels<T> make(const char* name) {
  return {
      name,
      CL_VECTOR_BYTES == 64,  // up to 2.4 times torch's BLAS on AMD Zen 5; not measured elsewhere
      multiply<T>,
      add_product<T>,
      transpose<T>,
      fold_rows<T>,
      fold_cols<T>,
      max_rows<T>,
      exp_rows<T>,
      row_weights<T>,
      col_weights<T>,
      row_col_weights<T>,
      drop<T>,
      widen<T, widened_bfloat16>,
      widen<T, widened_float16>,
      round_to<T, rounded_bfloat16>,
      round_to<T, rounded_float16>,
      dot<T>,
      combine<T>,
      scale_and_dot<T>,
      all_finite<T>,
      find<T>};
}

}  // namespace

#define CL_STRING_(x) #x
#define CL_STRING(x) CL_STRING_(x)
namespace CL_ISA {
extern const TileKernels<float> of_float;
extern const TileKernels<double> of_double;
const TileKernels<float> of_float = make<float>(CL_STRING(CL_ISA));
const TileKernels<double> of_double = make<double>(CL_STRING(CL_ISA));
}  // namespace CL_ISA

}  // namespace cl::cpu
