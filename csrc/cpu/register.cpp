// The .native overloads for CPU tensors. Schemas are in Python (cl_kernels/_ops.py).
#include <tuple>

#include "../checks.h"
#include "contrast.h"
#include "tensors.h"
#include "topk.h"
#include "visits.h"

namespace cl::cpu {
namespace {

template <class T>
TileLoop<T> pair_loop(const Tensor& query, const Tensor& key, const Tensor& scale,
                      const Options& options) {
  return TileLoop<T>(Embeddings<T>(query, options.compute_dtype),
                     Embeddings<T>(key, options.compute_dtype), *data<T>(scale), options);
}

template <class T>
TileLoop<T> self_loop(const Tensor& x, const Tensor& scale, const Options& options) {
  return TileLoop<T>(Embeddings<T>(x, options.compute_dtype), *data<T>(scale), options);
}

Tensor row_logsumexp(const Tensor& query, const Tensor& key, const Tensor& scale,
                     CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  check_pair_logits(query, key, scale, CL_OPTIONS);
  Tensor row = empty(query, {query.size(0)});
  by_accumulator(query, [&]<class T>(T) {
    logsumexp<T>(pair_loop<T>(query, key, scale, CL_OPTIONS), mutable_data<T>(row), nullptr);
  });
  return row;
}

std::tuple<Tensor, Tensor> row_logsumexp_mean_key(const Tensor& query, const Tensor& key,
                                                  const Tensor& scale, CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  check_pair_logits(query, key, scale, CL_OPTIONS);
  Tensor row = empty(query, {query.size(0)});
  Tensor mean_key = zeros(query, {query.size(0), query.size(1)});
  by_accumulator(query, [&]<class T>(T) {
    TileLoop<T> loop = pair_loop<T>(query, key, scale, CL_OPTIONS);
    logsumexp_mean_key<T>(loop, mutable_data<T>(row), mutable_data<T>(mean_key));
  });
  return {row, mean_key};
}

std::tuple<Tensor, Tensor> row_col_logsumexp(const Tensor& query, const Tensor& key,
                                             const Tensor& scale, CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  check_pair_logits(query, key, scale, CL_OPTIONS);
  Tensor row = empty(query, {query.size(0)}), col = empty(key, {key.size(0)});
  by_accumulator(query, [&]<class T>(T) {
    logsumexp<T>(pair_loop<T>(query, key, scale, CL_OPTIONS), mutable_data<T>(row),
                 mutable_data<T>(col));
  });
  return {row, col};
}

Tensor self_logsumexp(const Tensor& x, const Tensor& scale, CL_OPTION_PARAMETERS) {
  CL_CHECK_OPTIONS;
  check_self_logits(x, scale, CL_OPTIONS);
  Tensor row = empty(x, {x.size(0)});
  by_accumulator(x, [&]<class T>(T) {
    logsumexp<T>(self_loop<T>(x, scale, CL_OPTIONS), mutable_data<T>(row), mutable_data<T>(row));
  });
  return row;
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Gradients pair_gradients(const Tensor* grad_col, const Tensor* col, const Tensor& grad_row,
                         const Tensor& row, const Tensor& query, const Tensor& key,
                         const Tensor& scale, const Options& options, bool need_query,
                         bool need_key) {
  Tensor grad_query = zeros_if(need_query, query), grad_key = zeros_if(need_key, key);
  return by_accumulator(query, [&]<class T>(T) -> Gradients {
    TileLoop<T> loop = pair_loop<T>(query, key, scale, options);
    const Upstream<T> of_rows{data<T>(grad_row), data<T>(row)};
    Upstream<T> of_cols{nullptr, nullptr};
    if (col) of_cols = {data<T>(*grad_col), data<T>(*col)};
    const T grad_scale = gradients<T>(loop, of_rows, of_cols, *data<T>(scale),
                                      need_query ? mutable_data<T>(grad_query) : nullptr,
                                      need_key ? mutable_data<T>(grad_key) : nullptr);
    return {grad_query, grad_key, scalar(query, grad_scale)};
  });
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
  Tensor grad_x = zeros_if(true, x);
  return by_accumulator(x, [&]<class T>(T) -> std::tuple<Tensor, Tensor> {
    TileLoop<T> loop = self_loop<T>(x, scale, CL_OPTIONS);
    const Upstream<T> upstream{data<T>(grad), data<T>(lse)};
    T* out = mutable_data<T>(grad_x);
    const T grad_scale = gradients<T>(loop, upstream, upstream, *data<T>(scale), out, out);
    return {grad_x, scalar(x, grad_scale)};
  });
}

void check_alike(const char* first_name, const Tensor& first, const char* name, const Tensor& x) {
  check_embeddings(first_name, first);
  check_tensor(name, x, first, first.scalar_type(), {first.size(0), first.size(1)});
}

void check_needs(const std::vector<bool>& needs) {
  STD_TORCH_CHECK(needs.size() == 3, "cl_kernels: needs: expected 3, got ", needs.size());
}

ViewsContrast self_contrast(const Tensor& view_0, const Tensor& view_1, const Tensor& scale,
                            CL_OPTION_PARAMETERS, bool normalize, bool mean,
                            std::vector<bool> needs) {
  CL_CHECK_OPTIONS;
  check_alike("view_0", view_0, "view_1", view_1);
  check_logits(view_0, 2 * view_0.size(0), 2 * view_0.size(0), scale, CL_OPTIONS);
  check_needs(needs);
  return by_accumulator(view_0, [&]<class T>(T) {
    return contrast_views<T>(view_0, view_1, scale, CL_OPTIONS, normalize, mean, needs);
  });
}

PairsContrast pair_contrast(const Tensor& query, const Tensor& key, const Tensor& scale,
                            CL_OPTION_PARAMETERS, bool normalize, bool mean,
                            std::vector<bool> needs, bool symmetric) {
  CL_CHECK_OPTIONS;
  check_alike("query", query, "key", key);
  check_logits(query, query.size(0), key.size(0), scale, CL_OPTIONS);
  check_needs(needs);
  return by_accumulator(query, [&]<class T>(T) {
    return contrast_pairs<T>(query, key, scale, CL_OPTIONS, normalize, mean, needs, symmetric);
  });
}

Found search(const Tensor& query, const Tensor& key, int64_t k, std::optional<Tensor> query_factor,
             std::optional<Tensor> key_factor, std::vector<Tensor> query_ids,
             std::vector<Tensor> key_ids, std::vector<bool> keep_same,
             std::optional<Tensor> exclude_offsets, std::optional<Tensor> exclude_keys,
             std::optional<Tensor> below, std::optional<Tensor> above) {
  const Options options{query_ids, key_ids, keep_same, query.scalar_type()};
  check_search(query, key, k, options);
  check_search_vectors(query, key, query_factor, key_factor, below, above);
  check_list_tensors(exclude_offsets, exclude_keys, query);
  check_lists(exclude_offsets, exclude_keys);
  const SearchOptions search{query_factor, key_factor, exclude_offsets, exclude_keys, below, above};
  return topk(query, key, k, search, options);
}

Found select_topk(const Tensor& packed, const Tensor& counts, int64_t k) {
  check_survivors(packed, counts, k);
  const int64_t rows = packed.size(0);
  Tensor values = empty(packed, {rows, k}), indices = empty_indices({rows, k});
  merge<float>({data<int64_t>(packed), data<int32_t>(counts), rows, packed.size(1), packed.size(2)},
               k, mutable_data<float>(values), mutable_data<int64_t>(indices));
  return {values, indices};
}

}  // namespace
}  // namespace cl::cpu

STABLE_TORCH_LIBRARY_IMPL(cl_kernels, CPU, m) {
  m.impl("row_logsumexp.native", TORCH_BOX(&cl::cpu::row_logsumexp));
  m.impl("row_logsumexp_mean_key.native", TORCH_BOX(&cl::cpu::row_logsumexp_mean_key));
  m.impl("row_logsumexp_backward.native", TORCH_BOX(&cl::cpu::row_logsumexp_backward));
  m.impl("row_col_logsumexp.native", TORCH_BOX(&cl::cpu::row_col_logsumexp));
  m.impl("row_col_logsumexp_backward.native", TORCH_BOX(&cl::cpu::row_col_logsumexp_backward));
  m.impl("self_logsumexp.native", TORCH_BOX(&cl::cpu::self_logsumexp));
  m.impl("self_logsumexp_backward.native", TORCH_BOX(&cl::cpu::self_logsumexp_backward));
  m.impl("self_contrast.native", TORCH_BOX(&cl::cpu::self_contrast));
  m.impl("pair_contrast.native", TORCH_BOX(&cl::cpu::pair_contrast));
  m.impl("topk.native", TORCH_BOX(&cl::cpu::search));
  m.impl("select_topk.native", TORCH_BOX(&cl::cpu::select_topk));
}
