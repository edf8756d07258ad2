// Bodies of TileKernels, included by one file per instruction set, which defines CL_ISA.
//
// Plain loops that GCC and Clang vectorise. Only headers without inline functions that other files
// use may be included here: the linker could keep the copy compiled for the wrong machine.
#include "tile_folds.inl"
#include "tile_kernels.h"
#include "tile_products.inl"

namespace cl::cpu {
namespace {

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
  for_each_lane(count, [&](int l, int64_t i) { lanes[l] += x[i] * y[i]; });
  return sum_lanes(lanes);
}

template <class T>
void combine(T a, T* __restrict y, T b, const T* __restrict x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = a * y[i] + b * x[i];
}

template <class T>
void divide(const T* x, int64_t count, T by, T* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] / by;
}

template <class T>
T scale_and_dot(const T* __restrict rows, T* __restrict x, int64_t count, T scale) {
  T lanes[kLanes] = {};
  for_each_lane(count, [&](int l, int64_t i) { lanes[l] += x[i] == 0 ? T(0) : rows[i] * x[i]; });
  for (int64_t i = 0; i < count; ++i) x[i] *= scale;
  return sum_lanes(lanes);
}

template <class T>
bool all_finite(const T* x, int64_t count) {
  T lanes[kLanes] = {};  // 0 * x is 0, or NaN for a number that is not finite
  for_each_lane(count, [&](int l, int64_t i) { lanes[l] += x[i] * T(0); });
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

template <class Fold, class T = typename Fold::Number>
constexpr FoldKernels<Fold> kFoldKernels{
    .fold_rows = fold_rows<T>,
    .fold_cols = fold_cols<Fold>,
    .row_weights = row_weights<Fold>,
    .col_weights = col_weights<Fold>,
    .row_col_weights = row_col_weights<Fold>,
};

template <class T, template <class> class... FOLD>
constexpr KernelsOf<T, FoldList<FOLD...>> kernels_of(FoldList<FOLD...>) {
  return {kFoldKernels<FOLD<T>>...};
}

template <class T>
constexpr TileKernels<T> make(const char* name) {
  return {
      .instruction_set = name,
      // Up to 2.4 times torch's BLAS on AMD Zen 5; not measured elsewhere.
      .fast_products = CL_VECTOR_BYTES == 64,
      .multiply = multiply<T>,
      .add_product = add_product<T>,
      .transpose = transpose<T>,
      .scale_within_rows = scale_within<Axis::rows, T>,
      .scale_within_cols = scale_within<Axis::cols, T>,
      .add_biases = add_biases<T>,
      .drop = drop<T>,
      .drop_above_rows = drop_above<Axis::rows, T>,
      .drop_above_cols = drop_above<Axis::cols, T>,
      .folds = kernels_of<T>(Folds{}),
      .add_row_sums = add_row_sums<T>,
      .add_col_sums = add_col_sums<T>,
      .max_rows = max_rows<T>,
      .exp_rows = exp_rows<T>,
      .widen_bfloat16 = widen<T, widened_bfloat16>,
      .widen_float16 = widen<T, widened_float16>,
      .round_bfloat16 = round_to<T, rounded_bfloat16>,
      .round_float16 = round_to<T, rounded_float16>,
      .dot = dot<T>,
      .combine = combine<T>,
      .divide = divide<T>,
      .scale_and_dot = scale_and_dot<T>,
      .all_finite = all_finite<T>,
      .find = find<T>,
  };
}

}  // namespace

#define CL_STRING_(x) #x
#define CL_STRING(x) CL_STRING_(x)
namespace isa {
extern const InstructionSet CL_ISA;
const InstructionSet CL_ISA{make<float>(CL_STRING(CL_ISA)), make<double>(CL_STRING(CL_ISA))};
}  // namespace isa

}  // namespace cl::cpu
