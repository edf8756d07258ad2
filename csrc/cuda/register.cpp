// The .native overloads for CUDA tensors: for machines without Triton, and for float64. Schemas
// and checks are in Python (cl_kernels/_ops.py). Compiled, not yet run on a GPU.
//
// Products are torch's own float32 (float64) ones, of embeddings rounded to the compute dtype:
// torch.backends.cuda.matmul.allow_tf32 holds for them too.
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "visits.h"

namespace cl::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor row_logsumexp(const Tensor& query, const Tensor& key, const Tensor& scale,
                     CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  const DeviceGuard guard(query.get_device_index());
  Tensor row = empty(query, {query.size(0)});
  by_accumulator(query, [&]<class T>(T) {
    const Slabs<T> slabs(query, key, scale, CL_OPTIONS, false);
    logsumexp<T>(slabs, mutable_data<T>(row), nullptr);
  });
  return row;
}

std::tuple<Tensor, Tensor> row_logsumexp_mean_key(const Tensor& query, const Tensor& key,
                                                  const Tensor& scale, CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  const DeviceGuard guard(query.get_device_index());
  Tensor row = empty(query, {query.size(0)});
  Tensor mean_key = zeros(query, {query.size(0), query.size(1)});
  by_accumulator(query, [&]<class T>(T) {
    const Slabs<T> slabs(query, key, scale, CL_OPTIONS, true);
    logsumexp_mean_key<T>(slabs, mutable_data<T>(row), mutable_data<T>(mean_key));
  });
  return {row, mean_key};
}

std::tuple<Tensor, Tensor> row_col_logsumexp(const Tensor& query, const Tensor& key,
                                             const Tensor& scale, CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  const DeviceGuard guard(query.get_device_index());
  Tensor row = empty(query, {query.size(0)}), col = empty(key, {key.size(0)});
  by_accumulator(query, [&]<class T>(T) {
    const Slabs<T> slabs(query, key, scale, CL_OPTIONS, false);
    logsumexp<T>(slabs, mutable_data<T>(row), mutable_data<T>(col));
  });
  return {row, col};
}

Tensor self_logsumexp(const Tensor& x, const Tensor& scale, CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  const DeviceGuard guard(x.get_device_index());
  Tensor row = empty(x, {x.size(0)});
  by_accumulator(x, [&]<class T>(T) {
    const Slabs<T> slabs(x, scale, CL_OPTIONS, false);
    logsumexp<T>(slabs, mutable_data<T>(row), nullptr);
  });
  return row;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Gradients pair_gradients(const Tensor* grad_col, const Tensor* col, const Tensor& grad_row,
                         const Tensor& row, const Tensor& query, const Tensor& key,
                         const Tensor& scale, const Options& options, bool need_query,
                         bool need_key) {
  const DeviceGuard guard(query.get_device_index());
  Tensor grad_query = zeros_if(need_query, query), grad_key = zeros_if(need_key, key);
  Tensor grad_scale = zeros(query, {});
  by_accumulator(query, [&]<class T>(T) {
    const Upstream<T> of_rows{data<T>(grad_row), data<T>(row)};
    Upstream<T> of_cols{nullptr, nullptr};
    if (col) of_cols = {data<T>(*grad_col), data<T>(*col)};
    gradients<T>(Slabs<T>(query, key, scale, options, true), of_rows, of_cols,
                 need_query ? mutable_data<T>(grad_query) : nullptr,
                 need_key ? mutable_data<T>(grad_key) : nullptr, mutable_data<T>(grad_scale));
  });
  return {grad_query, grad_key, grad_scale};
}

Gradients row_logsumexp_backward(const Tensor& grad, const Tensor& lse, const Tensor& query,
                                 const Tensor& key, const Tensor& scale, CL_OPTION_PARAMETERS,
                                 bool need_query, bool need_key) {
  CL_CHECK_OPTIONS;
  return pair_gradients(nullptr, nullptr, grad, lse, query, key, scale, CL_OPTIONS, need_query,
                        need_key);
}

Gradients row_col_logsumexp_backward(const Tensor& grad_row, const Tensor& grad_col,
                                     const Tensor& row, const Tensor& col, const Tensor& query,
                                     const Tensor& key, const Tensor& scale, CL_OPTION_PARAMETERS,
                                     bool need_query, bool need_key) {
  CL_CHECK_OPTIONS;
  return pair_gradients(&grad_col, &col, grad_row, row, query, key, scale, CL_OPTIONS, need_query,
                        need_key);
}

std::tuple<Tensor, Tensor> self_logsumexp_backward(const Tensor& grad, const Tensor& lse,
                                                   const Tensor& x, const Tensor& scale,
                                                   CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  const DeviceGuard guard(x.get_device_index());
  Tensor grad_x = zeros(x, {x.size(0), x.size(1)}), grad_scale = zeros(x, {});
  by_accumulator(x, [&]<class T>(T) {
    const Upstream<T> upstream{data<T>(grad), data<T>(lse)};
    gradients<T>(Slabs<T>(x, scale, CL_OPTIONS, true), upstream, upstream, mutable_data<T>(grad_x),
                 nullptr, mutable_data<T>(grad_scale));
  });
  return {grad_x, grad_scale};
}

}  // namespace
}  // namespace cl::cuda

STABLE_TORCH_LIBRARY_IMPL(cl_kernels, CUDA, m) {
  m.impl("row_logsumexp.native", TORCH_BOX(&cl::cuda::row_logsumexp));
  m.impl("row_logsumexp_mean_key.native", TORCH_BOX(&cl::cuda::row_logsumexp_mean_key));
  m.impl("row_logsumexp_backward.native", TORCH_BOX(&cl::cuda::row_logsumexp_backward));
  m.impl("row_col_logsumexp.native", TORCH_BOX(&cl::cuda::row_col_logsumexp));
  m.impl("row_col_logsumexp_backward.native", TORCH_BOX(&cl::cuda::row_col_logsumexp_backward));
  m.impl("self_logsumexp.native", TORCH_BOX(&cl::cuda::self_logsumexp));
  m.impl("self_logsumexp_backward.native", TORCH_BOX(&cl::cuda::self_logsumexp_backward));
}
