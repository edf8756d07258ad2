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

// The tail of every schema, in its order (cl_kernels/_ops.py).
struct Options {
  const std::vector<Tensor>& query_ids;
  const std::vector<Tensor>& key_ids;
  const std::vector<bool>& keep_same;
  ScalarType compute_dtype;
};

#define CL_OPTION_PARAMETERS                                                               \
  std::vector<Tensor> query_ids, std::vector<Tensor> key_ids, std::vector<bool> keep_same, \
      std::optional<Tensor> below, std::optional<Tensor> key_bias,                         \
      std::optional<Tensor> guide_query, std::optional<Tensor> guide_key,                  \
      ScalarType compute_dtype, std::optional<double> /*logit_bound*/

#define CL_CHECK_OPTIONS                                             \
  STD_TORCH_CHECK(!below && !key_bias && !guide_query && !guide_key, \
                  "cl_kernels: below, key_bias and guide are not built yet")

#define CL_OPTIONS \
  Options { query_ids, key_ids, keep_same, compute_dtype }

}  // namespace cl
