// What a loss makes of a row's statistic over its negatives and of its positive's logit: the same
// functions, by the same names, as in cl_kernels/losses/epilogues.py. Plain C++: kernels and tests
// share it.
#pragma once
#include <cmath>

#include "host_device.h"

namespace cl {

// Derivatives of a loss by both.
template <class T>
struct Pulls {
  T by_negatives, by_positive;
};

// log(1 + exp(negatives - positive)); no negative at all (-inf) gives loss 0.
template <class T>
CL_HOST_DEVICE T softplus(T negatives, T positive) {
  const T margin = negatives - positive;
  return (margin > 0 ? margin : T(0)) + std::log1p(std::exp(-std::abs(margin)));
}

template <class T>
CL_HOST_DEVICE Pulls<T> softplus_pulls(T negatives, T positive) {
  const T margin = negatives - positive, small = std::exp(-std::abs(margin));
  const T pull = margin > 0 ? 1 / (1 + small) : small / (1 + small);
  return {pull, -pull};
}

// A positive that is no part of its own denominator.
template <class T>
CL_HOST_DEVICE T difference(T negatives, T positive) {
  return negatives - positive;
}

template <class T>
CL_HOST_DEVICE Pulls<T> difference_pulls(T, T) {
  return {1, -1};
}

// negatives - log sigmoid(positive), for a sum of softplus over negatives.
template <class T>
CL_HOST_DEVICE T sigmoid(T negatives, T positive) {
  return negatives + softplus(-positive, T(0));
}

template <class T>
CL_HOST_DEVICE Pulls<T> sigmoid_pulls(T, T positive) {
  return {1, softplus_pulls(-positive, T(0)).by_positive};
}

template <class T>
struct Epilogue {
  const char* name;
  T (*value)(T negatives, T positive);
  Pulls<T> (*pulls)(T negatives, T positive);
};

template <class T>
constexpr Epilogue<T> kEpilogues[] = {
    {"softplus", softplus<T>, softplus_pulls<T>},
    {"difference", difference<T>, difference_pulls<T>},
    {"sigmoid", sigmoid<T>, sigmoid_pulls<T>},
};

}  // namespace cl
