// Keys that every row has for negatives, such as a queue. Beside a batch, only the queries' biases
// hold for them of what is said of pairs; else all of it does.
#pragma once
#include "rows.h"
#include "visits.h"

namespace cl::cpu {

// A fold of the logits of every row, where counts are of no interest.
template <class Fold, class T = typename Fold::Number>
void fold_values(const Loop<T>& loop, T* row, T* col) {
  std::vector<int64_t> counts(Fold::kCounts ? loop.query().rows() + loop.key().rows() : 0);
  fold<Fold>(loop, {row, counts.data()}, {col, counts.data() + loop.query().rows()});
}

template <class Fold>
class NegativeKeys {
  using T = typename Fold::Number;
  // Whether the visit that makes the statistic can make what the queries' gradient is made of.
  static constexpr bool kWeighsKeys = std::is_same_v<Fold, LogSumExp<T>>;

 public:
  NegativeKeys(const Rows<T>& query, const Tensor& keys, T scale, const Call& call, bool normalize,
               bool alone)
      : query_(query),
        keys_({&keys}, normalize),
        loop_(query.embeddings(call.compute_dtype), keys_.embeddings(call.compute_dtype), scale,
              alone ? call.pairs : of_all(call.pairs)) {}

  // Makes statistic [M] that of these keys too. If gradients follow, but none of the keys, the same
  // visit makes what the queries' will be made of, where it can.
  void add_to(T* statistic, bool gradients_follow, bool of_keys) {
    value_.resize(query_.count());
    if constexpr (kWeighsKeys) {
      if (gradients_follow && !of_keys) {
        loop_.isolate_nonfinite();
        weighted_.resize(query_.count() * query_.width());
        logsumexp_weighted_key(loop_, value_.data(), weighted_.data());
      }
    }
    if (weighted_.empty()) {
      if (gradients_follow) loop_.keep_logits();
      fold_values<Fold>(loop_, value_.data(), static_cast<T*>(nullptr));
    }
    for (int64_t i = 0; i < query_.count(); ++i) statistic[i] = Fold::both(statistic[i], value_[i]);
  }

  // For the gradient of the statistic that these keys are part of: adds to the queries' and their
  // biases', makes that of the keys (each may be null), and returns that of the scale. The keys'
  // starts at 0.
  T add_gradients(Upstream<T> row, T* grad_query, T* grad_keys, T* grad_query_bias) {
    T grad_scale = 0;
    std::vector<T> more = std::move(weighted_);
    if (!more.empty()) {
      weigh_by_share(row, more.data(), grad_query_bias);
      grad_scale = static_cast<T>(scale_gradient(loop_.query(), more.data(), loop_.scale()));
    } else {
      loop_.isolate_nonfinite();
      const bool by_query = grad_query || !grad_keys;  // the scale's is made of either
      if (by_query) more.resize(query_.count() * query_.width());
      gradients<Fold>(
          loop_, row, {},
          {by_query ? more.data() : nullptr, grad_keys, &grad_scale, grad_query_bias, nullptr});
    }
    if (grad_query)
      for_each_row(query_.count(), query_.width(), [&](int64_t i) {
        const int64_t first = i * query_.width();
        tile_kernels<T>().combine(T(1), grad_query + first, T(1), more.data() + first,
                                  query_.width());
      });
    if (grad_keys) keys_.unnormalize(grad_keys);
    return grad_scale;
  }

 private:
  static Pairs of_all(const Pairs& pairs) {
    Pairs all;
    all.query_bias = pairs.query_bias;
    return all;
  }

  // Weighted keys of each query, times the gradient with respect to these keys' own statistic. If
  // they are no part of the whole they weigh nothing, whatever comes from upstream.
  void weigh_by_share(Upstream<T> row, T* weighted, T* grad_query_bias) const {
    const int64_t width = query_.width();
    for_each_row(query_.count(), width, [&](int64_t i) {
      T share = value_[i] == -kInfinity<T> ? T(0) : Fold::weight(value_[i], row.value[i]);
      T* const x = weighted + i * width;
      if (share != 0) share *= row.grad[i];
      for (int64_t d = 0; d < width; ++d) x[d] = share == 0 ? T(0) : x[d] * share;
      if (grad_query_bias) grad_query_bias[i] += share;
    });
  }

  const Rows<T>& query_;
  Rows<T> keys_;
  TileLoop<T> loop_;
  std::vector<T> value_, weighted_;  // [M], [M, D]
};

}  // namespace cl::cpu
