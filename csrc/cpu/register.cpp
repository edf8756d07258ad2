// The operations that CPUs alone have in one call. Schemas are in Python
// (cl_kernels/losses/contrast.py), which composes them elsewhere.
#include <algorithm>
#include <numeric>

#include "../boxed.h"
#include "../checks.h"
#include "contrast.h"

namespace cl::cpu {
namespace {

// The statistic's sides, and the name of its fold.
std::pair<Sides, std::string> parts_of(const std::string& statistic) {
  constexpr std::pair<std::string_view, Sides> kPrefixes[] = {
      {"self_", Sides::self},
      {"row_col_", Sides::row_col},  // before what it begins with
      {"row_", Sides::row},
  };
  for (const auto& [prefix, sides] : kPrefixes)
    if (statistic.starts_with(prefix)) return {sides, statistic.substr(prefix.size())};
  return {Sides::row, ""};
}

template <class T>
std::string epilogue_names() {
  std::string names;
  for (const Epilogue<T>& epilogue : kEpilogues<T>)
    names += std::string(names.empty() ? "" : ", ") + epilogue.name;
  return names;
}

template <class T>
const Epilogue<T>& epilogue_of(const std::string& name) {
  for (const Epilogue<T>& epilogue : kEpilogues<T>)
    if (name == epilogue.name) return epilogue;
  STD_TORCH_CHECK(false, "cl_kernels: epilogue: expected ", epilogue_names<T>(), ", got ", name);
}

bool has_one_bias(const Call& call) {
  return call.pairs.query_bias && call.pairs.query_bias->dim() == 0;
}

// compute(step) for the Contrast of the statistic's fold.
template <class T, class Compute, template <class> class... FOLD>
auto by_fold(FoldList<FOLD...>, const std::string& name, const Compute& compute) {
  using Result = decltype(compute.template operator()<LogSumExp<T>>());
  std::optional<Result> result;
  ((name == FOLD<T>::kName ? void(result.emplace(compute.template operator()<FOLD<T>>())) : void()),
   ...);
  STD_TORCH_CHECK(result, "cl_kernels: statistic: expected one of a fold of the rows, got ", name);
  return *result;
}

template <class Compute>
auto with_step(const ContrastInputs& inputs, const std::string& fold, const std::string& epilogue,
               const ContrastNeeds& needs, const Compute& compute) {
  return by_accumulator(inputs.first, [&]<class T>(T) {
    return by_fold<T>(Folds{}, fold, [&]<class Fold>() {
      return compute(Contrast<Fold>(inputs, epilogue_of<T>(epilogue), needs));
    });
  });
}

// The statistic's call: a positive is no negative, and one bias is that of every row.
Call call_of_rows(const Call& call, const Tensor& first, Sides sides, bool in_batch) {
  const int64_t batch = first.size(0), rows = sides == Sides::self ? 2 * batch : batch;
  Call result = call;
  Pairs& pairs = result.pairs;
  if (in_batch) {
    const Tensor ids = empty_indices(first, {rows});
    int64_t* const id = mutable_data<int64_t>(ids);
    for (int64_t i = 0; i < rows; ++i) id[i] = i < batch ? i : i - batch;
    pairs.query_ids.insert(pairs.query_ids.begin(), ids);
    pairs.key_ids.insert(pairs.key_ids.begin(), ids);
    pairs.keep_same.insert(pairs.keep_same.begin(), false);
  }
  if (has_one_bias(call)) {
    check_tensor("query_bias", *call.pairs.query_bias, first, accumulator(first), {});
    pairs.query_bias = empty(first, {rows});
    by_accumulator(first, [&]<class T>(T) {
      std::fill_n(mutable_data<T>(*pairs.query_bias), rows, *data<T>(*call.pairs.query_bias));
    });
  }
  return result;
}

ContrastNeeds needs_of(const std::vector<bool>& needs, const Pairs& pairs) {
  check_needs(needs, 6);
  check_bias_needs(pairs, needs[4], needs[5]);
  return {needs[0], needs[1], needs[2], needs[3], needs[4], needs[5]};
}

void check_contrast(const ContrastInputs& inputs) {
  const Tensor& first = inputs.first;
  check_tensor("second", inputs.second, first, first.scalar_type(), {first.size(0), first.size(1)});
  if (inputs.margin)
    check_tensor("margin", *inputs.margin, first, accumulator(first),
                 {3, inputs.margin->dim() == 2 && inputs.margin->size(1) == 1 ? 1 : first.size(0)});
  const bool alone = !inputs.in_batch;
  STD_TORCH_CHECK(
      !alone || (inputs.negative_keys && inputs.sides == Sides::row && !inputs.call.pairs.key_bias),
      "cl_kernels: in_batch: expected true without negative_keys, beside key_bias and "
      "for other statistics than those of rows, got false");
  const int64_t rows = inputs.losses();
  check_call(inputs.call, inputs.scale, first, rows, alone ? inputs.negative_keys->size(0) : rows);
  if (!inputs.negative_keys) {
    STD_TORCH_CHECK(!inputs.counted, "cl_kernels: counted: expected none without negative_keys");
    return;
  }
  STD_TORCH_CHECK(inputs.sides != Sides::row_col,
                  "cl_kernels: negative_keys: expected none for row_col, got ",
                  describe(*inputs.negative_keys));
  const int64_t count = inputs.negative_keys->dim() ? inputs.negative_keys->size(0) : 0;
  check_tensor("negative_keys", *inputs.negative_keys, first, first.scalar_type(),
               {count, first.size(1)});
  if (!inputs.counted) return;
  const int64_t each = inputs.counted->dim() == 2 ? inputs.counted->size(1) : 0;
  check_tensor("counted", *inputs.counted, first, ScalarType::Bool, {rows, each});
  STD_TORCH_CHECK(each * rows == count, "cl_kernels: negative_keys: expected ", each,
                  " for each of the ", rows, " queries, got ", count);
}

// Added in a fixed order; a mean over no row is 0.
template <class T>
T total(const std::vector<T>& losses, bool mean) {
  double sum = 0;
  for (const T loss : losses) sum += loss;
  return static_cast<T>(mean ? sum / static_cast<double>(std::max<size_t>(losses.size(), 1)) : sum);
}

// The gradients that are needed; of one bias it is one number.
TensorList needed_of(ContrastGradients grads, const Call& call) {
  if (grads.query_bias && has_one_bias(call)) {
    const Tensor& each = *grads.query_bias;
    grads.query_bias = by_accumulator(each, [&]<class T>(T) {
      const T* const begin = data<T>(each);
      return scalar(each, static_cast<T>(std::accumulate(begin, begin + each.numel(), 0.0)));
    });
  }
  return {grads.needed()};
}

// The loss, what contrast_backward needs, and of a total the gradients that are needed.
std::tuple<Tensor, Tensor, TensorList> contrast(
    const Tensor& first, const Tensor& second, const std::optional<Tensor>& negative_keys,
    const std::optional<Tensor>& counted, const std::optional<Tensor>& margin, const Tensor& scale,
    const Call& call, const std::string& statistic, const std::string& epilogue, bool normalize,
    bool in_batch, const std::string& reduction, const std::vector<bool>& needs_list) {
  check_embeddings("first", first);
  const auto [sides, fold] = parts_of(statistic);
  const Call of_rows = call_of_rows(call, first, sides, in_batch);
  const ContrastInputs inputs{first, second,  negative_keys, counted,   margin,
                              scale, of_rows, sides,         normalize, in_batch};
  check_contrast(inputs);
  const bool mean = reduction == "mean", none = reduction == "none";
  STD_TORCH_CHECK(mean || none || reduction == "sum",
                  "cl_kernels: reduction: expected mean, sum or none, got ", reduction);
  const ContrastNeeds needs = none ? ContrastNeeds{} : needs_of(needs_list, call.pairs);
  Tensor statistics = empty(first, {inputs.directions() + 1, inputs.batch()});
  Tensor loss = none ? empty(first, {inputs.losses()}) : empty(first, {});
  const ContrastGradients grads =
      with_step(inputs, fold, epilogue, needs, [&]<class Fold>(Contrast<Fold>&& step) {
        using T = typename Fold::Number;
        T* const values = mutable_data<T>(statistics);
        step.make_statistics(values);
        if (none) {
          step.make_losses(values, mutable_data<T>(loss));
        } else {
          std::vector<T> losses(inputs.losses());
          step.make_losses(values, losses.data());
          *mutable_data<T>(loss) = total(losses, mean);
        }
        if (!needs.any()) return ContrastGradients{};
        const T share = mean ? T(1) / static_cast<T>(std::max<int64_t>(inputs.losses(), 1)) : T(1);
        return step.gradients(values, {nullptr, share});
      });
  return {loss, statistics, needed_of(grads, call)};
}

TensorList contrast_backward(const Tensor& grad, const Tensor& statistics, const Tensor& first,
                             const Tensor& second, const std::optional<Tensor>& negative_keys,
                             const std::optional<Tensor>& counted,
                             const std::optional<Tensor>& margin, const Tensor& scale,
                             const Call& call, const std::string& statistic,
                             const std::string& epilogue, bool normalize, bool in_batch,
                             const std::vector<bool>& needs_list) {
  check_embeddings("first", first);
  const auto [sides, fold] = parts_of(statistic);
  const Call of_rows = call_of_rows(call, first, sides, in_batch);
  const ContrastInputs inputs{first, second,  negative_keys, counted,   margin,
                              scale, of_rows, sides,         normalize, in_batch};
  check_contrast(inputs);
  check_vector("grad", grad, first, inputs.losses());
  check_tensor("statistics", statistics, first, accumulator(first),
               {inputs.directions() + 1, inputs.batch()});
  const ContrastNeeds needs = needs_of(needs_list, call.pairs);
  const ContrastGradients grads =
      with_step(inputs, fold, epilogue, needs, [&]<class Fold>(Contrast<Fold>&& step) {
        using T = typename Fold::Number;
        return step.gradients(data<T>(statistics), {data<T>(grad), T(1)});
      });
  return needed_of(grads, call);
}

}  // namespace
}  // namespace cl::cpu

STABLE_TORCH_LIBRARY_IMPL(cl_kernels, CPU, library) {
  using namespace cl;
  library.impl("contrast.native", Boxed<&cpu::contrast>::call);
  library.impl("contrast_backward.native", Boxed<&cpu::contrast_backward>::call);
}
