// The .native overloads for CUDA tensors: for machines without Triton, and for float64. Schemas
// are in Python (cl_kernels/_ops.py), which alone checks what is in lists of keys to leave out.
// Compiled, not yet run on a GPU.
//
// Products are torch's own float32 (float64) ones, of embeddings rounded to the compute dtype:
// torch.backends.cuda.matmul.fp32_precision holds for them too. Only topk multiplies half types as
// they are.
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../checks.h"
#include "topk.h"
#include "visits.h"

namespace cl::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor row_logsumexp(const Tensor& query, const Tensor& key, const Tensor& scale,
                     CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  check_pair_logits(query, key, scale, CL_OPTIONS);
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
  check_pair_logits(query, key, scale, CL_OPTIONS);
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
  check_pair_logits(query, key, scale, CL_OPTIONS);
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
  check_self_logits(x, scale, CL_OPTIONS);
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
  check_pair_logits(query, key, scale, CL_OPTIONS);
  check_vector("grad", grad, query, query.size(0));
  check_vector("lse", lse, query, query.size(0));
  return pair_gradients(nullptr, nullptr, grad, lse, query, key, scale, CL_OPTIONS, need_query,
                        need_key);
}

Gradients row_col_logsumexp_backward(const Tensor& grad_row, const Tensor& grad_col,
                                     const Tensor& row, const Tensor& col, const Tensor& query,
                                     const Tensor& key, const Tensor& scale, CL_OPTION_PARAMETERS,
                                     bool need_query, bool need_key) {
  CL_CHECK_OPTIONS;
  check_pair_logits(query, key, scale, CL_OPTIONS);
  check_vector("grad_row", grad_row, query, query.size(0));
  check_vector("grad_col", grad_col, query, key.size(0));
  check_vector("row", row, query, query.size(0));
  check_vector("col", col, query, key.size(0));
  return pair_gradients(&grad_col, &col, grad_row, row, query, key, scale, CL_OPTIONS, need_query,
                        need_key);
}

std::tuple<Tensor, Tensor> self_logsumexp_backward(const Tensor& grad, const Tensor& lse,
                                                   const Tensor& x, const Tensor& scale,
                                                   CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  check_self_logits(x, scale, CL_OPTIONS);
  check_vector("grad", grad, x, x.size(0));
  check_vector("lse", lse, x, x.size(0));
  const DeviceGuard guard(x.get_device_index());
  Tensor grad_x = zeros(x, {x.size(0), x.size(1)}), grad_scale = zeros(x, {});
  by_accumulator(x, [&]<class T>(T) {
    const Upstream<T> upstream{data<T>(grad), data<T>(lse)};
    gradients<T>(Slabs<T>(x, scale, CL_OPTIONS, true), upstream, upstream, mutable_data<T>(grad_x),
                 nullptr, mutable_data<T>(grad_scale));
  });
  return {grad_x, grad_scale};
}

using TopK = std::tuple<Tensor, Tensor>;

TopK topk(const Tensor& query, const Tensor& key, int64_t k, std::optional<Tensor> query_factor,
          std::optional<Tensor> key_factor, std::vector<Tensor> query_ids,
          std::vector<Tensor> key_ids, std::vector<bool> keep_same,
          std::optional<Tensor> exclude_offsets, std::optional<Tensor> exclude_keys,
          std::optional<Tensor> below, std::optional<Tensor> above) {
  const Options options{query_ids, key_ids, keep_same, query.scalar_type()};
  check_search(query, key, k, options);
  check_search_vectors(query, key, query_factor, key_factor, below, above);
  check_list_tensors(exclude_offsets, exclude_keys, query);
  const DeviceGuard guard(query.get_device_index());
  Tensor values = empty(query, {query.size(0), k});
  Tensor indices = torch::stable::new_empty(query, {query.size(0), k}, ScalarType::Long);
  by_accumulator(query, [&]<class T>(T) {
    const Search<T> search{
        optional_data<T>(query_factor),
        optional_data<T>(key_factor),
        optional_data<T>(below),
        optional_data<T>(above),
        filters(options),
        optional_data<int64_t>(exclude_offsets),
        optional_data<int64_t>(exclude_keys),
    };
    find_best<T>(query, key, search, {mutable_data<T>(values), mutable_data<int64_t>(indices), k});
  });
  return {values, indices};
}

TopK select_topk(const Tensor& packed, const Tensor& counts, int64_t k) {
  check_survivors(packed, counts, k);
  const DeviceGuard guard(packed.get_device_index());
  Tensor values = torch::stable::new_empty(packed, {packed.size(0), k}, ScalarType::Float);
  Tensor indices = torch::stable::new_empty(packed, {packed.size(0), k}, ScalarType::Long);
  select_best(packed, counts, {mutable_data<float>(values), mutable_data<int64_t>(indices), k});
  return {values, indices};
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
  m.impl("topk.native", TORCH_BOX(&cl::cuda::topk));
  m.impl("select_topk.native", TORCH_BOX(&cl::cuda::select_topk));
}
