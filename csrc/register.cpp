// The .native overloads of this library's device. Schemas are in Python: cl_kernels/statistics,
// cl_kernels/search.
#include "boxed.h"
#include "checks.h"
#include "device.h"

namespace cl {
namespace {

constexpr size_t count_of(Sides sides) { return sides == Sides::row_col ? 2 : 1; }

// The fold's results for so many rows: tensors, and where they are.
template <class Fold, class T = typename Fold::Number>
Outputs<T> make_outputs(const Tensor& like, int64_t rows, Results& results) {
  results.push_back(device::empty(like, {rows}));
  T* value = mutable_data<T>(results.back());
  if (!Fold::kCounts) return {value, nullptr};
  results.push_back(device::empty_indices(like, {rows}));
  return {value, mutable_data<int64_t>(results.back())};
}

template <Sides SIDES, template <class> class Fold>
Results forward(const Tensor& query, const std::optional<Tensor>& key, const Tensor& scale,
                const Call& call) {
  const Logits logits{query, key, scale, call};
  check_logits(logits, SIDES == Sides::self);
  device::check_served(call.pairs);
  const device::Guard guard(query);
  Results results;
  by_accumulator(query, [&]<class T>(T) {
    const Outputs<T> row = make_outputs<Fold<T>>(query, query.size(0), results);
    Outputs<T> col{};
    if (SIDES == Sides::row_col) col = make_outputs<Fold<T>>(query, key->size(0), results);
    device::fold<Fold<T>>(device::Loop<T>(logits, /*isolate=*/false), row, col);
  });
  return results;
}

std::tuple<Tensor, Tensor> row_logsumexp_weighted_key(const Tensor& query,
                                                      const std::optional<Tensor>& key,
                                                      const Tensor& scale, const Call& call) {
  const Logits logits{query, key, scale, call};
  check_logits(logits, false);
  device::check_served(call.pairs);
  const device::Guard guard(query);
  Tensor row = device::empty(query, {query.size(0)});
  Tensor weighted_key = device::zeros(query, {query.size(0), query.size(1)});
  by_accumulator(query, [&]<class T>(T) {
    device::logsumexp_weighted_key(device::Loop<T>(logits, /*isolate=*/true), mutable_data<T>(row),
                                   mutable_data<T>(weighted_key));
  });
  return {row, weighted_key};
}

// Gradients of query, key, scale and both biases; what is not needed is empty. A Gram matrix has no
// keys.
template <Sides SIDES, template <class> class Fold>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const std::vector<Tensor>& grads,
                                                            const std::vector<Tensor>& values,
                                                            const Tensor& query,
                                                            const std::optional<Tensor>& key,
                                                            const Tensor& scale, const Call& call,
                                                            const std::vector<bool>& needs) {
  const Logits logits{query, key, scale, call};
  check_logits(logits, SIDES == Sides::self);
  device::check_served(call.pairs);
  check_sides("grads", grads, logits, count_of(SIDES));
  check_sides("values", values, logits, count_of(SIDES));
  check_needs(needs, 4);
  check_bias_needs(call.pairs, needs[2], needs[3]);
  const bool need_query = needs[0], need_key = needs[1] && SIDES != Sides::self;
  const device::Guard guard(query);
  const int64_t M = query.size(0), N = logits.keys().size(0);
  Tensor grad_query = device::zeros_if(need_query, query, {M, query.size(1)});
  Tensor grad_key = device::zeros_if(need_key, logits.keys(), {N, query.size(1)});
  Tensor grad_scale = device::zeros(query, {});
  Tensor query_bias = device::zeros_if(needs[2], query, {M});
  Tensor key_bias = device::zeros_if(needs[3], query, {N});
  by_accumulator(query, [&]<class T>(T) {
    const auto upstream = [&](size_t side) {
      return Upstream<T>{data<T>(grads[side]), data<T>(values[side])};
    };
    Upstream<T> col{};
    if (SIDES == Sides::row_col) col = upstream(1);
    device::gradients<Fold<T>>(device::Loop<T>(logits, /*isolate=*/true), upstream(0), col,
                               {data_if<T>(need_query, grad_query), data_if<T>(need_key, grad_key),
                                mutable_data<T>(grad_scale), data_if<T>(needs[2], query_bias),
                                data_if<T>(needs[3], key_bias)});
  });
  return {grad_query, grad_key, grad_scale, query_bias, key_bias};
}

Found topk(const Tensor& query, const Tensor& key, int64_t k,
           const std::optional<Tensor>& query_factor, const std::optional<Tensor>& key_factor,
           const std::optional<Tensor>& exclude_offsets, const std::optional<Tensor>& exclude_keys,
           const Pairs& pairs) {
  const Search search{query,           key,          k,    query_factor, key_factor,
                      exclude_offsets, exclude_keys, pairs};
  check_search(search);
  STD_TORCH_CHECK(!pairs.query_bias && !pairs.key_bias && !pairs.ceiling,
                  "cl_kernels: topk: expected no query_bias, key_bias and guide");
  const device::Guard guard(query);
  return device::topk(search);
}

Found select_topk(const Tensor& packed, const Tensor& counts, int64_t k) {
  check_survivors(packed, counts, k);
  const device::Guard guard(packed);
  return device::select_topk(packed, counts, k);
}

using Library = torch::stable::detail::StableLibrary;

template <Sides SIDES, template <class> class Fold>
void register_statistic(Library& library, const std::string& sides) {
  const std::string name = sides + "_" + Fold<float>::kName;
  library.impl((name + ".native").c_str(), Boxed<&forward<SIDES, Fold>>::call);
  library.impl((name + "_backward.native").c_str(), Boxed<&backward<SIDES, Fold>>::call);
}

template <template <class> class... FOLD>
void register_statistics(Library& library, FoldList<FOLD...>) {
  (register_statistic<Sides::row, FOLD>(library, "row"), ...);
  (register_statistic<Sides::row_col, FOLD>(library, "row_col"), ...);
  (register_statistic<Sides::self, FOLD>(library, "self"), ...);
}

}  // namespace
}  // namespace cl

STABLE_TORCH_LIBRARY_IMPL(cl_kernels, CL_DISPATCH_KEY, library) {
  using namespace cl;
  register_statistics(library, Folds{});
  library.impl("row_logsumexp_weighted_key.native", Boxed<&row_logsumexp_weighted_key>::call);
  library.impl("topk.native", Boxed<&topk>::call);
  library.impl("select_topk", Boxed<&select_topk>::call);  // of no backend: torch picks the device
}
