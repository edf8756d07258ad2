// Folds: statistics of the logits of a row or column, which arrive a few at a time. Plain C++:
// kernels and tests share it.
//
// A fold is the state of what it has seen, with
//   nothing(), of(logit)    the states of no logit and of one; a dropped pair's logit is -inf
//   merge(other)            the state of both
//   write(outputs, at)      the results of row `at`
//   weight(logit, value)    d value / d logit, for a logit above -inf
//   both(value, other)      the value over two sets of pairs
// and kCounts, whether its results are a value and a count instead of a value alone; kName, which
// is that of the statistic without its sides. Of a fold whose state is kSums sums, one of each
// term<n>(logit), csrc/cpu/tile_folds.inl makes the same over whole tiles, vectorised; others have
// their loops there. What takes functions from Math is compiled there with vectorised ones.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace cl {

// Where a running maximum starts: finite, so that subtracting it from a dropped pair's -inf or
// from itself is never NaN.
template <class T>
constexpr T kLowest = static_cast<T>(-3e38);

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

struct StdMath {
  template <class T>
  CL_HOST_DEVICE static T exp_nonpositive(T x) {
    return std::exp(x);
  }

  // log(1 + u) for u in [0, 1].
  template <class T>
  CL_HOST_DEVICE static T log1p_unit(T u) {
    return std::log1p(u);
  }
};

// What a statistic is of: the rows, rows and columns, or the rows of a matrix with itself.
enum class Sides { row, row_col, self };

// Results of one side: a number for each row.
template <class T>
struct Outputs {
  T* value;
  int64_t* count;  // null unless the fold counts
};

// A side's statistic and the gradient with respect to it, for each row; null without a statistic.
template <class T>
struct Upstream {
  const T* grad;
  const T* value;

  Upstream from(int64_t first) const { return {grad + first, value + first}; }
};

// Where gradients go; null where one is not wanted. They start at 0.
template <class T>
struct Gradients {
  T *query, *key;            // [M, width], [N, width]
  T* scale;                  // []; made from one of these
  T *query_bias, *key_bias;  // [M], [N]
};

// log sum_j exp(z_j), held as max(z) and sum(exp(z - max)).
template <class T>
struct LogSumExp {
  using Number = T;
  static constexpr const char* kName = "logsumexp";
  static constexpr bool kCounts = false;

  T max, sum;

  CL_HOST_DEVICE static LogSumExp nothing() { return {kLowest<T>, 0}; }
  CL_HOST_DEVICE static LogSumExp of(T logit) { return {logit, 1}; }

  CL_HOST_DEVICE void merge(LogSumExp other) {
    if (other.max > max) {
      sum = sum * std::exp(max - other.max) + other.sum;
      max = other.max;
    } else {
      sum += other.sum * std::exp(other.max - max);
    }
  }

  // -inf if every pair was dropped.
  CL_HOST_DEVICE T value() const {
    if (sum == 0 && max == kLowest<T>) return -kInfinity<T>;
    return max + std::log(sum);
  }

  CL_HOST_DEVICE void write(Outputs<T> out, int64_t at) const { out.value[at] = value(); }

  template <class Math = StdMath>
  CL_HOST_DEVICE static T weight(T logit, T value) {
    return Math::exp_nonpositive(logit - value);
  }

  CL_HOST_DEVICE static T both(T value, T other) {
    LogSumExp all = nothing();
    all.merge(of(value));
    all.merge(of(other));
    return all.value();
  }
};

// sum_j log(1 + exp(z_j)).
template <class T>
struct SoftplusSum {
  using Number = T;
  static constexpr const char* kName = "softplus_sum";
  static constexpr bool kCounts = false;
  static constexpr int kSums = 1;

  double sum;  // of more terms than T could add up one by one

  template <int N, class Math = StdMath>
  CL_HOST_DEVICE static T term(T logit) {
    const T small = Math::exp_nonpositive(logit < 0 ? logit : -logit);
    return (logit <= 0 ? T(0) : logit) + Math::log1p_unit(small);
  }

  CL_HOST_DEVICE static SoftplusSum nothing() { return {0}; }
  CL_HOST_DEVICE static SoftplusSum of(T logit) { return {term<0>(logit)}; }

  CL_HOST_DEVICE void merge(SoftplusSum other) { sum += other.sum; }

  CL_HOST_DEVICE void write(Outputs<T> out, int64_t at) const {
    out.value[at] = static_cast<T>(sum);
  }

  template <class Math = StdMath>
  CL_HOST_DEVICE static T weight(T logit, T) {
    const T small = Math::exp_nonpositive(logit < 0 ? logit : -logit);
    return (logit < 0 ? small : T(1)) / (1 + small);
  }

  CL_HOST_DEVICE static T both(T value, T other) { return value + other; }
};

// sum_j max(z_j, 0), and how many z_j are above 0. A NaN is not lost.
template <class T>
struct HingeSum {
  using Number = T;
  static constexpr const char* kName = "hinge_sum";
  static constexpr bool kCounts = true;
  static constexpr int kSums = 2;

  double sum, count;

  template <int N, class Math = StdMath>
  CL_HOST_DEVICE static T term(T logit) {
    if constexpr (N == 0)
      return logit <= 0 ? T(0) : logit;
    else
      return logit > 0 ? T(1) : T(0);
  }

  CL_HOST_DEVICE static HingeSum nothing() { return {0, 0}; }
  CL_HOST_DEVICE static HingeSum of(T logit) { return {term<0>(logit), term<1>(logit)}; }

  CL_HOST_DEVICE void merge(HingeSum other) {
    sum += other.sum;
    count += other.count;
  }

  CL_HOST_DEVICE void write(Outputs<T> out, int64_t at) const {
    out.value[at] = static_cast<T>(sum);
    out.count[at] = static_cast<int64_t>(count);
  }

  template <class Math = StdMath>
  CL_HOST_DEVICE static T weight(T logit, T) {
    return logit > 0 ? 1 : logit <= 0 ? 0 : logit;
  }

  CL_HOST_DEVICE static T both(T value, T other) { return value + other; }
};

// Every fold there is. Instantiations, tables of kernels and registration follow from these lines.
#define CL_EACH_FOLD(DO) DO(LogSumExp) DO(SoftplusSum) DO(HingeSum)

template <template <class> class... FOLD>
struct FoldList {};
using Folds = FoldList<LogSumExp, SoftplusSum, HingeSum>;

}  // namespace cl
