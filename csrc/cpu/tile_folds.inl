// What becomes of tiles of similarities and of logits, for tile_kernels.inl: which pairs are
// dropped, and the folds.
#include <utility>

#include "exp.h"
#include "tile_kernels.h"

namespace cl::cpu {
namespace {

constexpr int kLanes = 64;     // partial sums of a row: enough to hide the adder's latency
constexpr int kFewLanes = 16;  // a register: what is left of a row, and the rows of small tiles

template <class T>
T larger(T a, T b) {
  return b > a ? b : a;  // a NaN never wins: it shows in the sum
}

// f(lane, i) for every i in [0, count), a lane's own in order.
template <class F>
__attribute__((always_inline)) inline void for_each_lane(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) f(l, i + l);
  for (; i + kFewLanes <= count; i += kFewLanes)
    for (int l = 0; l < kFewLanes; ++l) f(l, i + l);
  for (int l = 0; i < count; ++i, ++l) f(l, i);
}

// Of all lanes, by halves; a loop over the halves would not be vectorised.
template <int COUNT = kLanes, class T, class F>
__attribute__((always_inline)) inline T reduce_lanes(T* lanes, const F& f) {
  if constexpr (COUNT == 1) {
    return lanes[0];
  } else {
    for (int l = 0; l < COUNT / 2; ++l) lanes[l] = f(lanes[l], lanes[l + COUNT / 2]);
    return reduce_lanes<COUNT / 2>(lanes, f);
  }
}

template <class T>
__attribute__((always_inline)) inline T sum_lanes(T* lanes) {
  return reduce_lanes(lanes, [](T a, T b) { return a + b; });
}

// Dropped pairs

template <class T>
void drop(T* z, int64_t m, int64_t n, const int64_t* row_ids, const int64_t* col_ids,
          bool keep_same) {
  for (int64_t i = 0; i < m; ++i, z += n) {
    const int64_t id = row_ids[i];
    if (keep_same)
      for (int64_t j = 0; j < n; ++j) z[j] = id == col_ids[j] ? z[j] : -kInfinity<T>;
    else
      for (int64_t j = 0; j < n; ++j) z[j] = id != col_ids[j] ? z[j] : -kInfinity<T>;
  }
}

enum class Axis { rows, cols };

// A NaN is within no bounds.
template <Axis AXIS, bool BELOW, bool ABOVE, class T>
void scale_if_within(T* __restrict s, int64_t m, int64_t n, T scale, const T* __restrict below,
                     const T* __restrict above) {
  for (int64_t i = 0; i < m; ++i, s += n)
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = AXIS == Axis::rows ? i : j;
      const bool kept = (!BELOW || s[j] < below[at]) & (!ABOVE || s[j] > above[at]);
      s[j] = kept ? scale * s[j] : -kInfinity<T>;
    }
}

template <Axis AXIS, class T>
void scale_within(T* s, int64_t m, int64_t n, T scale, Bounds<T> bounds) {
  const auto [below, above] = bounds;
  if (below && above)
    scale_if_within<AXIS, true, true>(s, m, n, scale, below, above);
  else if (below)
    scale_if_within<AXIS, true, false>(s, m, n, scale, below, above);
  else if (above)
    scale_if_within<AXIS, false, true>(s, m, n, scale, below, above);
  else
    scale_if_within<AXIS, false, false>(s, m, n, scale, below, above);
}

template <class T>
void add_biases(T* z, int64_t m, int64_t n, const T* rows, const T* cols) {
  for (int64_t i = 0; i < m; ++i, z += n) {
    const T of_row = rows ? rows[i] : T(0);
    if (cols)
      for (int64_t j = 0; j < n; ++j) z[j] += of_row + cols[j];
    else
      for (int64_t j = 0; j < n; ++j) z[j] += of_row;
  }
}

// A NaN is under no ceiling.
template <Axis AXIS, class T>
void drop_above(T* __restrict z, int64_t m, int64_t n, const T* __restrict similarity,
                const T* __restrict ceiling) {
  for (int64_t i = 0; i < m; ++i, z += n, similarity += n)
    for (int64_t j = 0; j < n; ++j)
      z[j] = similarity[j] <= ceiling[AXIS == Axis::rows ? i : j] ? z[j] : -kInfinity<T>;
}

// Log-sum-exps

template <class T>
T row_max(const T* z, int64_t n) {
  T best[kLanes];
  for (int l = 0; l < kLanes; ++l) best[l] = kLowest<T>;
  for_each_lane(n, [&](int l, int64_t j) { best[l] = larger(best[l], z[j]); });
  return reduce_lanes(best, larger<T>);
}

template <class T>
void fold_rows(const T* z, int64_t m, int64_t n, LogSumExp<T>* states) {
  for (int64_t i = 0; i < m; ++i, z += n) {
    const T top = row_max(z, n);
    T lanes[kLanes] = {};
    for_each_lane(n, [&](int l, int64_t j) { lanes[l] += exp_nonpositive(z[j] - top); });
    states[i] = {top, sum_lanes(lanes)};
  }
}

// Of at most kLanes columns.
template <class T>
__attribute__((always_inline)) inline void fold_strip(const T* z, int64_t m, int64_t n, int count,
                                                      LogSumExp<T>* states) {
  T max[kLanes], sum[kLanes] = {};
  for (int l = 0; l < count; ++l) max[l] = kLowest<T>;
  for (int64_t i = 0; i < m; ++i)
    for (int l = 0; l < count; ++l) max[l] = larger(max[l], z[i * n + l]);
  for (int64_t i = 0; i < m; ++i)
    for (int l = 0; l < count; ++l) sum[l] += exp_nonpositive(z[i * n + l] - max[l]);
  for (int l = 0; l < count; ++l) states[l] = {max[l], sum[l]};
}

// Sums

template <class T, T (*TERM)(T)>
T sum_row(const T* z, int64_t n) {
  T lanes[kLanes] = {};
  for_each_lane(n, [&](int l, int64_t j) { lanes[l] += TERM(z[j]); });
  return sum_lanes(lanes);
}

// Of at most kLanes columns.
template <class T, T (*TERM)(T)>
__attribute__((always_inline)) inline void sum_strip(const T* z, int64_t m, int64_t n, int count,
                                                     T* sums) {
  for (int l = 0; l < count; ++l) sums[l] = 0;
  for (int64_t i = 0; i < m; ++i)
    for (int l = 0; l < count; ++l) sums[l] += TERM(z[i * n + l]);
}

// Of the folds that are sums

template <class Fold>
using Sums = std::make_integer_sequence<int, Fold::kSums>;

template <class Fold, class T, int... N>
Fold sums_of_row(const T* z, int64_t n, std::integer_sequence<int, N...>) {
  return {sum_row<T, Fold::template term<N, VectorMath>>(z, n)...};
}

template <class T, class Fold>
  requires(Fold::kSums > 0)
void fold_rows(const T* z, int64_t m, int64_t n, Fold* states) {
  for (int64_t i = 0; i < m; ++i, z += n) states[i] = sums_of_row<Fold>(z, n, Sums<Fold>{});
}

template <class Fold, class T, int... N>
__attribute__((always_inline)) inline void sums_of_strip(const T* z, int64_t m, int64_t n,
                                                         int count, Fold* states,
                                                         std::integer_sequence<int, N...>) {
  T sums[sizeof...(N)][kLanes];
  (sum_strip<T, Fold::template term<N, VectorMath>>(z, m, n, count, sums[N]), ...);
  for (int l = 0; l < count; ++l) states[l] = {sums[N][l]...};
}

template <class T, class Fold>
  requires(Fold::kSums > 0)
__attribute__((always_inline)) inline void fold_strip(const T* z, int64_t m, int64_t n, int count,
                                                      Fold* states) {
  sums_of_strip<Fold>(z, m, n, count, states, Sums<Fold>{});
}

// Columns of any fold

template <class Fold, class T = typename Fold::Number>
void fold_cols(const T* z, int64_t m, int64_t n, Fold* states) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) fold_strip(z + j, m, n, kLanes, states + j);
  if (j < n) fold_strip(z + j, m, n, static_cast<int>(n - j), states + j);
}

// Weights of any fold

// Logits are what the statistic has seen, rounded and all: a logit computed anew by a fused
// multiply-add would keep what the statistic has lost, and at 1e6 be off by a quarter of a weight.
template <class Fold, class T = typename Fold::Number>
T weigh(T logit, T grad, T value) {
  return logit == -kInfinity<T> ? T(0) : grad * Fold::template weight<VectorMath>(logit, value);
}

template <class Fold, class T = typename Fold::Number>
void row_weights(T* z, int64_t m, int64_t n, Upstream<T> row) {
  for (int64_t i = 0; i < m; ++i, z += n) {
    const T g = row.grad[i], v = row.value[i];
    for (int64_t j = 0; j < n; ++j) z[j] = weigh<Fold>(z[j], g, v);
  }
}

template <class Fold, class T = typename Fold::Number>
void col_weights(T* z, int64_t m, int64_t n, Upstream<T> col) {
  const T* __restrict grad = col.grad, * __restrict value = col.value;
  for (int64_t i = 0; i < m; ++i, z += n)
    for (int64_t j = 0; j < n; ++j) z[j] = weigh<Fold>(z[j], grad[j], value[j]);
}

template <class Fold, class T = typename Fold::Number>
void row_col_weights(T* z, const T* mirrored, int64_t m, int64_t n, Upstream<T> row,
                     Upstream<T> col) {
  const T* __restrict col_grad = col.grad, * __restrict col_value = col.value;
  for (int64_t i = 0; i < m; ++i, z += n, mirrored += n) {
    const T g = row.grad[i], v = row.value[i];
    for (int64_t j = 0; j < n; ++j)
      z[j] = weigh<Fold>(z[j], g, v) + weigh<Fold>(mirrored[j], col_grad[j], col_value[j]);
  }
}

// Sums of weights

template <class T>
T itself(T w) {
  return w;
}

template <class T>
void add_row_sums(const T* w, int64_t m, int64_t n, T* sums) {
  for (int64_t i = 0; i < m; ++i, w += n) sums[i] += sum_row<T, itself<T>>(w, n);
}

template <class T>
void add_col_sums(const T* __restrict w, int64_t m, int64_t n, T* __restrict sums) {
  for (int64_t i = 0; i < m; ++i, w += n)
    for (int64_t j = 0; j < n; ++j) sums[j] += w[j];
}

// Softmax-weighted keys: exponentials against a running maximum

template <class T>
void max_rows(const T* z, int64_t m, int64_t n, T* max) {
  for (int64_t i = 0; i < m; ++i) max[i] = row_max(z + i * n, n);
}

template <class T>
void exp_rows(T* z, int64_t m, int64_t n, const T* max, T* sum) {
  for (int64_t i = 0; i < m; ++i, z += n) {
    const T top = max[i];
    for (int64_t j = 0; j < n; ++j) z[j] = exp_nonpositive(z[j] - top);
    T lanes[kLanes] = {};
    for_each_lane(n, [&](int l, int64_t j) { lanes[l] += z[j]; });
    sum[i] = sum_lanes(lanes);
  }
}

}  // namespace
}  // namespace cl::cpu
