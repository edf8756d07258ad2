// Folds: statistics of the logits of a row or column, which arrive a few at a time. Plain C++:
// kernels and tests share it.
//
// A fold is the state of what it has seen, with
//   nothing(), of(logit)    the states of no logit and of one; a dropped pair's logit is -inf
//   merge(other)            the state of both
//   write(outputs, at)      the results of row `at`
//   weight(logit, value)    d value / d logit, for a logit above -inf
// and kCounts, whether its results are a value and a count instead of a value alone.
// csrc/cpu/tile_folds.inl has the same over whole tiles, vectorised.
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

// log sum_j exp(z_j), held as max(z) and sum(exp(z - max)).
template <class T>
struct LogSumExp {
  using Number = T;
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

  CL_HOST_DEVICE static T weight(T logit, T value) { return std::exp(logit - value); }
};

}  // namespace cl
