// New CUDA tensors of the accumulation type.
#pragma once
#include "../tensors.h"

namespace cl::cuda {

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(like, size, accumulator(like));
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& size) {
  return torch::stable::new_zeros(like, size, accumulator(like));
}

template <class T>
const T* optional_data(const std::optional<Tensor>& x) {
  return x ? data<T>(*x) : nullptr;
}

inline Tensor zeros_if(bool needed, const Tensor& x) {
  return needed ? zeros(x, {x.size(0), x.size(1)}) : empty(x, {0});
}

}  // namespace cl::cuda
