// exp for arguments that are at most about zero, written so that a compiler vectorises it.
//
// Cephes' scheme: x = n ln2 + r with |r| <= ln2 / 2, a polynomial for exp(r), 2^n by building its
// exponent bits. Below the smallest normal result it returns 0; NaN passes through. float: at most
// 1.02 ulp over [-87.3, 0].
#pragma once
#include <cstdint>
#include <cstring>

namespace cl::cpu {

template <class To, class From>
__attribute__((always_inline)) inline To bit_cast(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}

__attribute__((always_inline)) inline float exp_nonpositive(float x) {
  constexpr float lowest = -87.33654f;
  constexpr float rounder = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < lowest ? lowest : x;
  const float shifted = clamped * 1.44269504088896341f + rounder;
  const float n = shifted - rounder;
  float r = clamped - n * 0.693145751953125f;  // ln2 in two parts; the first product is exact
  r = r - n * 1.428606765330187e-06f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const int32_t power = (bit_cast<int32_t>(shifted) + 127) << 23;  // its low bits hold n
  const float y = p * bit_cast<float>(power);
  return x < lowest ? 0.f : y;
}

__attribute__((always_inline)) inline double exp_nonpositive(double x) {
  constexpr double lowest = -708.;
  constexpr double rounder = 6755399441055744.;  // 1.5 * 2^52
  const double clamped = x < lowest ? lowest : x;
  const double shifted = clamped * 1.44269504088896340736 + rounder;
  const double n = shifted - rounder;
  double r = clamped - n * 6.93145751953125e-1;
  r = r - n * 1.42860682030941723212e-6;
  double p = 1. / 6227020800.;  // Taylor's series to r^13: below 2^-53 for |r| <= ln2 / 2
  p = p * r + 1. / 479001600.;
  p = p * r + 1. / 39916800.;
  p = p * r + 1. / 3628800.;
  p = p * r + 1. / 362880.;
  p = p * r + 1. / 40320.;
  p = p * r + 1. / 5040.;
  p = p * r + 1. / 720.;
  p = p * r + 1. / 120.;
  p = p * r + 1. / 24.;
  p = p * r + 1. / 6.;
  p = p * r + 1. / 2.;
  p = p * r + 1.;
  p = p * r + 1.;
  const int64_t power = (bit_cast<int64_t>(shifted) + 1023) << 52;
  const double y = p * bit_cast<double>(power);
  return x < lowest ? 0. : y;
}

// log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)), whose series has no cancelling terms.
template <class T>
__attribute__((always_inline)) inline T log1p_unit(T u) {
  constexpr int terms = sizeof(T) == 4 ? 8 : 16;  // (1/9)^terms / (2 terms + 1) < 2^-24, 2^-53
  const T s = u / (2 + u), square = s * s;
  T series = T(1) / (2 * terms + 1);
  for (int k = terms - 1; k >= 0; --k) series = series * square + T(1) / (2 * k + 1);
  return 2 * s * series;
}

namespace {

// For folds. Unnamed: what is compiled with it is each file's own, for its instruction set.
struct VectorMath {
  template <class T>
  __attribute__((always_inline)) static T exp_nonpositive(T x) {
    return cpu::exp_nonpositive(x);
  }

  template <class T>
  __attribute__((always_inline)) static T log1p_unit(T u) {
    return cpu::log1p_unit(u);
  }
};

}  // namespace
}  // namespace cl::cpu
