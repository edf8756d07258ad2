// Tensors of the accumulation type: double for double embeddings, else float.
#pragma once
#include "stable.h"

namespace cl {

inline ScalarType accumulator(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

template <class T>
const T* optional_data(const std::optional<Tensor>& x) {
  return x ? data<T>(*x) : nullptr;
}

template <class T>
T* data_if(bool needed, const Tensor& x) {
  return needed ? mutable_data<T>(x) : nullptr;
}

template <class T>
T* data_if_any(const std::optional<Tensor>& x) {
  return x ? mutable_data<T>(*x) : nullptr;
}

// compute(T{}) in double for double tensors, else in float.
template <class Compute>
auto by_accumulator(const Tensor& x, const Compute& compute) {
  return accumulator(x) == ScalarType::Double ? compute(double{}) : compute(float{});
}

}  // namespace cl
