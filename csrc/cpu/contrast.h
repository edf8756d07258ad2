// The composition that most losses are, cl_kernels/losses/composed.py, in one call: at small
// batches torch's bookkeeping between its steps would cost more than their arithmetic.
#pragma once
#include <optional>
#include <string_view>

#include "../epilogues.h"
#include "negative_keys.h"
#include "own_keys.h"

namespace cl::cpu {

// What the statistic of the negatives is of says with whom the positive is a pair. Sides::self: the
// 2B stacked rows of two views, each with the same row of the other; else B queries, with the key
// of the same number, and in row_col the keys as well.
struct ContrastInputs {
  const Tensor &first, &second;                // [B, D]
  const std::optional<Tensor>& negative_keys;  // [K, D]
  const std::optional<Tensor>& counted;  // [B, K]: negative_keys are each query's own, [B K, D]
  const std::optional<Tensor>& margin;   // [3, B] or [3, 1]: see shifted
  const Tensor& scale;
  const Call& call;
  Sides sides;
  bool normalize;
  bool in_batch;  // if not, negative_keys are the only negatives, and the filters' keys

  bool is_self() const { return sides == Sides::self; }
  int64_t batch() const { return first.size(0); }
  int64_t directions() const { return sides == Sides::row ? 1 : 2; }
  int64_t losses() const { return is_self() ? 2 * batch() : batch(); }
};

struct ContrastNeeds {
  bool first, second, negative_keys, scale, query_bias, key_bias;

  bool any() const { return first || second || negative_keys || scale || query_bias || key_bias; }
};

// Those of two views stand stacked in the first's place.
struct ContrastGradients {
  std::optional<Tensor> first, second, negative_keys, scale, query_bias, key_bias;

  // Those that are needed, in this order.
  std::vector<Tensor> needed() const {
    std::vector<Tensor> result;
    for (const auto* each : {&first, &second, &negative_keys, &scale, &query_bias, &key_bias})
      if (*each) result.push_back(**each);
    return result;
  }
};

// The gradient with respect to each loss, or to every loss alike.
template <class T>
struct LossGradient {
  const T* each;
  T all;

  T operator[](int64_t i) const { return each ? each[i] : all; }
};

template <class Fold>
class Contrast {
  using T = typename Fold::Number;

 public:
  Contrast(const ContrastInputs& inputs, const Epilogue<T>& epilogue, const ContrastNeeds& needs);

  // Those of the negatives in each direction and the similarities of the positives:
  // [directions + 1, B].
  void make_statistics(T* statistics);

  void make_losses(const T* statistics, T* losses) const;

  ContrastGradients gradients(const T* statistics, LossGradient<T> grad);

 private:
  // Gradients with respect to the negatives' statistics and to the positives' logits.
  struct Pulled {
    std::vector<T> negatives, positives;  // [directions, B]
  };

  // The rows of a direction's positive pair i, as the biases count them.
  struct Positive {
    int64_t query, key;
  };

  Positive positive(int64_t direction, int64_t i) const {
    const int64_t other = inputs_.is_self() ? inputs_.batch() : 0;
    return direction == 0 ? Positive{i, other + i} : Positive{other + i, i};
  }

  T bias(Positive at) const {
    return (query_bias_ ? query_bias_[at.query] : T(0)) + (key_bias_ ? key_bias_[at.key] : T(0));
  }

  // What stands for a positive's similarity: a margin's factor of it and an offset.
  T shifted(int64_t i, T similarity) const {
    return margin_ ? of_margin(0, i) * similarity + of_margin(1, i) : similarity;
  }

  // The derivative of that. Of a margin of the angle it is large where the angle is small, where a
  // line through the similarity would lose the digits of the value.
  T slope(int64_t i) const { return margin_ ? of_margin(2, i) : T(1); }

  T of_margin(int64_t what, int64_t i) const {
    return margin_[what * margin_size_ + (margin_size_ == 1 ? 0 : i)];
  }

  const T* first_row(int64_t i) const { return query_.row(i); }
  const T* second_row(int64_t i) const {
    return key_ ? key_->row(i) : query_.row(inputs_.batch() + i);
  }

  template <class F>
  void each_statistic(const T* statistics, const F& f) const;
  Pulled pull(const T* statistics, LossGradient<T> grad) const;
  double add_positives(const Pulled& pulled, const T* statistics, const Gradients<T>& into) const;
  void pull_together(const T* pull, T* grad_first, T* grad_second) const;

  ContrastInputs inputs_;
  Epilogue<T> epilogue_;
  ContrastNeeds needs_;
  T scale_;
  const T *query_bias_, *key_bias_, *margin_;
  int64_t margin_size_ = 0;
  Rows<T> query_;
  std::optional<Rows<T>> key_;       // none of views, which are their own keys
  std::optional<TileLoop<T>> loop_;  // of negatives in the batch, if there are any
  std::optional<NegativeKeys<Fold>> negative_keys_;
  std::optional<OwnKeys<Fold>> own_keys_;  // instead of these
};

}  // namespace cl::cpu
