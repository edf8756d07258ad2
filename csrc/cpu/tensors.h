// New CPU tensors: of the accumulation type, and indices.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstring>

#include "../tensors.h"
#include "parallel.h"

namespace cl::cpu {

// Host memory has no current device to be set.
struct Guard {
  explicit Guard(const Tensor&) {}
};

// By the C shim: torch::stable's functions look the operator up by name at every call.
inline Tensor empty_of(int32_t dtype, const std::vector<int64_t>& size) {
  std::vector<int64_t> strides(size.size(), 1);
  for (size_t d = size.size(); d-- > 1;) strides[d - 1] = strides[d] * size[d];
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      size.size(), size.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor empty(const Tensor& like, const std::vector<int64_t>& size) {
  const bool is_double = accumulator(like) == ScalarType::Double;
  return empty_of(is_double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32(), size);
}

inline Tensor empty_indices(const Tensor&, const std::vector<int64_t>& size) {
  return empty_of(aoti_torch_dtype_int64(), size);
}

inline Tensor zeros(const Tensor& like, const std::vector<int64_t>& size) {
  Tensor result = empty(like, size);
  const int64_t width = accumulator(like) == ScalarType::Double ? 8 : 4;
  char* bytes = static_cast<char*>(result.mutable_data_ptr());
  constexpr int64_t grain = 1 << 20;
  for_each_range(result.numel() * width, grain,
                 [&](int64_t begin, int64_t end) { std::memset(bytes + begin, 0, end - begin); });
  return result;
}

inline Tensor zeros_if(bool needed, const Tensor& like, const std::vector<int64_t>& size) {
  return needed ? zeros(like, size) : empty(like, {0});
}

template <class T>
Tensor scalar(const Tensor& like, T value) {
  Tensor result = empty(like, {});
  *mutable_data<T>(result) = value;
  return result;
}

}  // namespace cl::cpu
