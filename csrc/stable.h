// The whole torch surface this library may use: the LibTorch stable ABI (>= 2.11).
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

namespace cl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

}  // namespace cl
