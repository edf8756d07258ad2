// Tensors of the accumulation type: double for double embeddings, else float.
#pragma once
#include "../stable.h"

namespace cl::cpu {

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

inline Tensor empty(const Tensor& like, std::vector<int64_t> size) {
  return torch::stable::new_empty(like, size, accumulator(like));
}

inline Tensor zeros(const Tensor& like, std::vector<int64_t> size) {
  return torch::stable::new_zeros(like, size, accumulator(like));
}

inline Tensor zeros_if(bool needed, const Tensor& x) {
  return needed ? zeros(x, {x.size(0), x.size(1)}) : empty(x, {0});
}

template <class T>
Tensor scalar(const Tensor& like, T value) {
  Tensor result = empty(like, {});
  *mutable_data<T>(result) = value;
  return result;
}

// compute(T{}) in double for double tensors, else in float.
template <class Compute>
auto by_accumulator(const Tensor& x, const Compute& compute) {
  return accumulator(x) == ScalarType::Double ? compute(double{}) : compute(float{});
}

}  // namespace cl::cpu
