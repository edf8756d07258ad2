#include "contrast.h"

namespace cl::cpu {
namespace {

template <class T>
Rows<T> rows_of_queries(const ContrastInputs& inputs) {
  if (inputs.is_self()) return Rows<T>({&inputs.first, &inputs.second}, inputs.normalize);
  return Rows<T>({&inputs.first}, inputs.normalize);
}

template <class T>
std::optional<Rows<T>> rows_of_keys(const ContrastInputs& inputs) {
  if (inputs.is_self()) return std::nullopt;
  return Rows<T>({&inputs.second}, inputs.normalize);
}

template <class T>
TileLoop<T> loop_of(const Rows<T>& query, const std::optional<Rows<T>>& key, T scale,
                    const Call& call) {
  const Embeddings<T> queries = query.embeddings(call.compute_dtype);
  if (!key) return TileLoop<T>(queries, scale, call.pairs);
  return TileLoop<T>(queries, key->embeddings(call.compute_dtype), scale, call.pairs);
}

}  // namespace

template <class Fold>
Contrast<Fold>::Contrast(const ContrastInputs& inputs, const Epilogue<T>& epilogue,
                         const ContrastNeeds& needs)
    : inputs_(inputs),
      epilogue_(epilogue),
      needs_(needs),
      scale_(*data<T>(inputs.scale)),
      query_bias_(optional_data<T>(inputs.call.pairs.query_bias)),
      key_bias_(optional_data<T>(inputs.call.pairs.key_bias)),
      margin_(optional_data<T>(inputs.margin)),
      query_(rows_of_queries<T>(inputs)),
      key_(rows_of_keys<T>(inputs)) {
  if (margin_) margin_size_ = inputs.margin->size(1);
  if (inputs.in_batch) loop_.emplace(loop_of(query_, key_, scale_, inputs.call));
  if (inputs.counted)
    own_keys_.emplace(query_, *inputs.negative_keys, *inputs.counted, scale_, query_bias_,
                      inputs.normalize);
  else if (inputs.negative_keys)
    negative_keys_.emplace(query_, *inputs.negative_keys, scale_, inputs.call, inputs.normalize,
                           !inputs.in_batch);
}

template <class Fold>
void Contrast<Fold>::make_statistics(T* statistics) {
  const int64_t batch = inputs_.batch(), width = query_.width();
  T* const similarity = statistics + inputs_.directions() * batch;
  T* const col = inputs_.sides == Sides::row_col ? statistics + batch : nullptr;
  if (loop_) {
    if (needs_.any()) loop_->keep_logits();
    fold_values<Fold>(*loop_, statistics, col);
  } else {
    int64_t count;
    for (int64_t i = 0; i < batch; ++i) Fold::nothing().write({statistics + i, &count}, 0);
  }
  if (negative_keys_) negative_keys_->add_to(statistics, needs_.any(), needs_.negative_keys);
  if (own_keys_) own_keys_->add_to(statistics);
  for_each_row(batch, width, [&](int64_t i) {
    similarity[i] = tile_kernels<T>().dot(first_row(i), second_row(i), width);
  });
}

// Calls f(r, loss, share, positive) for every statistic r of the negatives, with the logit of its
// positive: a share of one of the losses.
template <class Fold>
template <class F>
void Contrast<Fold>::each_statistic(const T* statistics, const F& f) const {
  const int64_t batch = inputs_.batch(), directions = inputs_.directions();
  const T* const similarity = statistics + directions * batch;
  const T share = inputs_.is_self() ? T(1) : T(1) / static_cast<T>(directions);
  for (int64_t d = 0; d < directions; ++d)
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t r = d * batch + i;
      const T logit = scale_ * shifted(i, similarity[i]) + bias(positive(d, i));
      f(r, inputs_.is_self() ? r : i, share, logit);
    }
}

template <class Fold>
void Contrast<Fold>::make_losses(const T* statistics, T* losses) const {
  std::fill_n(losses, inputs_.losses(), T(0));
  each_statistic(statistics, [&](int64_t r, int64_t loss, T share, T positive) {
    losses[loss] += share * epilogue_.value(statistics[r], positive);
  });
}

template <class Fold>
auto Contrast<Fold>::pull(const T* statistics, LossGradient<T> grad) const -> Pulled {
  const int64_t count = inputs_.directions() * inputs_.batch();
  Pulled result{std::vector<T>(count), std::vector<T>(count)};
  each_statistic(statistics, [&](int64_t r, int64_t loss, T share, T positive) {
    const auto [by_negatives, by_positive] = epilogue_.pulls(statistics[r], positive);
    result.negatives[r] = share * grad[loss] * by_negatives;
    result.positives[r] = share * grad[loss] * by_positive;
  });
  return result;
}

template <class Fold>
ContrastGradients Contrast<Fold>::gradients(const T* statistics, LossGradient<T> grad) {
  const bool is_self = inputs_.is_self();
  const int64_t batch = inputs_.batch(), rows = query_.count(), width = query_.width();
  const bool need_first = needs_.first || (is_self && needs_.second);
  const bool need_second = needs_.second && !is_self;
  const bool by_query = is_self || needs_.first || !needs_.second;  // <query, grad> is the scale's
  const Pulled pulled = pull(statistics, grad);
  const auto made = [&](bool needed, const std::vector<int64_t>& size) {
    return needed ? std::optional(zeros(inputs_.first, size)) : std::nullopt;
  };
  ContrastGradients out{.first = made(by_query, {rows, width}),
                        .second = made(need_second, {batch, width}),
                        .query_bias = made(needs_.query_bias, {rows}),
                        .key_bias = made(needs_.key_bias, {rows})};
  T of_scale = 0;
  const Gradients<T> into{data_if_any<T>(out.first), data_if_any<T>(out.second), &of_scale,
                          data_if_any<T>(out.query_bias), data_if_any<T>(out.key_bias)};

  const Upstream<T> row{pulled.negatives.data(), statistics};
  Upstream<T> col{};
  if (inputs_.sides == Sides::row_col) col = row.from(batch);
  if (loop_) {
    loop_->isolate_nonfinite();
    cl::cpu::gradients<Fold>(*loop_, row, col, into);
  }
  double grad_scale = of_scale;
  if (inputs_.negative_keys) {
    const Tensor& keys = *inputs_.negative_keys;
    out.negative_keys = made(needs_.negative_keys, {keys.size(0), width});
    T* const grad_keys = data_if_any<T>(out.negative_keys);
    const auto add_gradients = [&](auto& of) {
      return of->add_gradients(row, into.query, grad_keys, into.query_bias);
    };
    grad_scale += own_keys_ ? add_gradients(own_keys_) : add_gradients(negative_keys_);
  }
  grad_scale += add_positives(pulled, statistics, into);
  if (needs_.scale) out.scale = scalar(inputs_.first, static_cast<T>(grad_scale));
  if (!need_first) out.first.reset();
  return out;
}

// Returns the gradient of the scale.
template <class Fold>
double Contrast<Fold>::add_positives(const Pulled& pulled, const T* statistics,
                                     const Gradients<T>& into) const {
  const int64_t batch = inputs_.batch(), directions = inputs_.directions();
  const T* const similarity = statistics + directions * batch;
  std::vector<T> pull(batch);
  double grad_scale = 0;
  for (int64_t i = 0; i < batch; ++i) {
    for (int64_t d = 0; d < directions; ++d) {
      const T of_direction = pulled.positives[d * batch + i];
      const Positive at = positive(d, i);
      pull[i] += of_direction;
      if (into.query_bias) into.query_bias[at.query] += of_direction;
      if (into.key_bias) into.key_bias[at.key] += of_direction;
    }
    grad_scale += pull[i] * shifted(i, similarity[i]);
    pull[i] *= slope(i);
  }
  T* const second = inputs_.is_self() ? into.query + batch * query_.width() : into.key;
  pull_together(pull.data(), into.query, second);
  return grad_scale;
}

// The positives' gradients of both rows, which then go back through the normalisation.
template <class Fold>
void Contrast<Fold>::pull_together(const T* pull, T* grad_first, T* grad_second) const {
  const int64_t batch = inputs_.batch(), width = query_.width();
  for_each_row(batch, width, [&](int64_t i) {
    const T by = scale_ * pull[i];
    if (grad_first) {
      tile_kernels<T>().combine(T(1), grad_first + i * width, by, second_row(i), width);
      query_.unnormalize(i, grad_first + i * width);
    }
    if (grad_second) {
      tile_kernels<T>().combine(T(1), grad_second + i * width, by, first_row(i), width);
      key_ ? key_->unnormalize(i, grad_second + i * width)
           : query_.unnormalize(batch + i, grad_second + i * width);
    }
  });
}

#define CL_INSTANTIATE(FOLD)            \
  template class Contrast<FOLD<float>>; \
  template class Contrast<FOLD<double>>;
CL_EACH_FOLD(CL_INSTANTIATE)

}  // namespace cl::cpu
