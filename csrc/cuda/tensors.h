// The current device, and new CUDA tensors: of the accumulation type, and indices.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include "../tensors.h"

namespace cl::cuda {

// Makes a tensor's device the current one.
class Guard {
 public:
  explicit Guard(const Tensor& x) : guard_(x.get_device_index()) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(like, size, accumulator(like));
}

inline Tensor empty_indices(const Tensor& like, const std::vector<int64_t>& size) {
  return torch::stable::new_empty(like, size, ScalarType::Long);
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& size) {
  return torch::stable::new_zeros(like, size, accumulator(like));
}

inline Tensor zeros_if(bool needed, const Tensor& like, const std::vector<int64_t>& size) {
  return needed ? zeros(like, size) : empty(like, {0});
}

}  // namespace cl::cuda
