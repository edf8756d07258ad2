// Statistics of logits that arrive a tile at a time. Plain C++: kernels and tests share it.
#pragma once
#include <cmath>
#include <limits>

#include "host_device.h"

namespace cl {

// Where a running maximum starts: finite, so that subtracting it from a dropped pair's -inf or
// from itself is never NaN.
template <class T>
constexpr T kLowest = static_cast<T>(-3e38);

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The log-sum-exp of the logits scale * s seen so far, as max(s) and sum(exp(scale * (s - max))).
template <class T>
struct RunningLogSumExp {
  T max = kLowest<T>;
  T sum = 0;

  CL_HOST_DEVICE void merge(T other_max, T other_sum, T scale) {
    if (other_max > max) {
      sum = sum * std::exp((max - other_max) * scale) + other_sum;
      max = other_max;
    } else {
      sum += other_sum * std::exp((other_max - max) * scale);
    }
  }

  // -inf if every pair was dropped.
  CL_HOST_DEVICE T value(T scale) const {
    if (sum == 0 && max == kLowest<T>) return -kInfinity<T>;
    return max * scale + std::log(sum);
  }
};

}  // namespace cl
