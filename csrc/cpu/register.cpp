// The operations that CPUs alone have in one call. Schemas are in Python
// (cl_kernels/losses/contrast.py), which composes them elsewhere.
#include "../boxed.h"
#include "../checks.h"
#include "contrast.h"

namespace cl::cpu {
namespace {

ContrastSides sides_of(const std::string& statistic) {
  constexpr std::pair<const char*, ContrastSides> kNames[] = {
      {"self_logsumexp", ContrastSides::self},
      {"row_logsumexp", ContrastSides::row},
      {"row_col_logsumexp", ContrastSides::row_col},
  };
  for (const auto& [name, sides] : kNames)
    if (statistic == name) return sides;
  STD_TORCH_CHECK(false, "cl_kernels: statistic: expected self_logsumexp, row_logsumexp or ",
                  "row_col_logsumexp, got ", statistic);
}

template <class T>
const Epilogue<T>& epilogue_of(const std::string& name) {
  for (const Epilogue<T>& epilogue : kEpilogues<T>)
    if (name == epilogue.name) return epilogue;
  STD_TORCH_CHECK(false, "cl_kernels: epilogue: expected softplus or difference, got ", name);
}

ContrastNeeds needs_of(const std::vector<bool>& needs) {
  check_needs(needs, 4);
  return {needs[0], needs[1], needs[2], needs[3]};
}

void check_contrast(const ContrastInputs& inputs) {
  const Tensor& first = inputs.first;
  check_embeddings("first", first);
  check_tensor("second", inputs.second, first, first.scalar_type(), {first.size(0), first.size(1)});
  const int64_t rows = inputs.losses();
  check_call(inputs.call, inputs.scale, first, rows, rows);
  if (!inputs.negative_keys) return;
  STD_TORCH_CHECK(inputs.sides != ContrastSides::row_col,
                  "cl_kernels: negative_keys: expected none for row_col_logsumexp, got ",
                  describe(*inputs.negative_keys));
  const int64_t count = inputs.negative_keys->dim() ? inputs.negative_keys->size(0) : 0;
  check_tensor("negative_keys", *inputs.negative_keys, first, first.scalar_type(),
               {count, first.size(1)});
}

// Added in a fixed order; a mean over no row is 0.
template <class T>
T total(const std::vector<T>& losses, bool mean) {
  double sum = 0;
  for (const T loss : losses) sum += loss;
  return static_cast<T>(mean ? sum / static_cast<double>(std::max<size_t>(losses.size(), 1)) : sum);
}

using Contrasted = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Contrasted contrast(const Tensor& first, const Tensor& second,
                    const std::optional<Tensor>& negative_keys, const Tensor& scale,
                    const Call& call, const std::string& statistic, const std::string& epilogue,
                    bool normalize, const std::string& reduction,
                    const std::vector<bool>& needs_list) {
  const ContrastInputs inputs{first,    second, negative_keys, scale, call, sides_of(statistic),
                              normalize};
  check_contrast(inputs);
  const bool mean = reduction == "mean", none = reduction == "none";
  STD_TORCH_CHECK(mean || none || reduction == "sum",
                  "cl_kernels: reduction: expected mean, sum or none, got ", reduction);
  const ContrastNeeds needs = none ? ContrastNeeds{} : needs_of(needs_list);
  Tensor statistics = empty(first, {inputs.directions() + 1, inputs.batch()});
  return by_accumulator(first, [&]<class T>(T) -> Contrasted {
    Contrast<LogSumExp<T>> step(inputs, epilogue_of<T>(epilogue), needs);
    T* const values = mutable_data<T>(statistics);
    step.make_statistics(values);
    Tensor loss = empty(first, {});
    if (none) {
      loss = empty(first, {inputs.losses()});
      step.make_losses(values, mutable_data<T>(loss));
    } else {
      std::vector<T> losses(inputs.losses());
      step.make_losses(values, losses.data());
      *mutable_data<T>(loss) = total(losses, mean);
    }
    if (!needs.any()) {
      const auto nothing = [&] { return empty(first, {0}); };
      return {loss, statistics, nothing(), nothing(), nothing(), scalar(first, T(0))};
    }
    const T share = mean ? T(1) / static_cast<T>(std::max<int64_t>(inputs.losses(), 1)) : T(1);
    const ContrastGradients grads = step.gradients(values, {nullptr, share});
    return {loss, statistics, grads.first, grads.second, grads.negative_keys, grads.scale};
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Gradients contrast_backward(const Tensor& grad, const Tensor& statistics, const Tensor& first,
                            const Tensor& second, const std::optional<Tensor>& negative_keys,
                            const Tensor& scale, const Call& call, const std::string& statistic,
                            const std::string& epilogue, bool normalize,
                            const std::vector<bool>& needs_list) {
  const ContrastInputs inputs{first,    second, negative_keys, scale, call, sides_of(statistic),
                              normalize};
  check_contrast(inputs);
  check_vector("grad", grad, first, inputs.losses());
  check_tensor("statistics", statistics, first, accumulator(first),
               {inputs.directions() + 1, inputs.batch()});
  const ContrastNeeds needs = needs_of(needs_list);
  return by_accumulator(first, [&]<class T>(T) -> Gradients {
    Contrast<LogSumExp<T>> step(inputs, epilogue_of<T>(epilogue), needs);
    const ContrastGradients grads = step.gradients(data<T>(statistics), {data<T>(grad), T(1)});
    return {grads.first, grads.second, grads.negative_keys, grads.scale};
  });
}

}  // namespace
}  // namespace cl::cpu

STABLE_TORCH_LIBRARY_IMPL(cl_kernels, CPU, library) {
  using namespace cl;
  library.impl("contrast.native", Boxed<&cpu::contrast>::call);
  library.impl("contrast_backward.native", Boxed<&cpu::contrast_backward>::call);
}
