// Keys that every row has for negatives beside its batch, such as a queue; no filter touches them.
#pragma once
#include "rows.h"
#include "visits.h"

namespace cl::cpu {

template <class T>
class NegativeKeys {
 public:
  NegativeKeys(const Rows<T>& query, const Tensor& keys, T scale, ScalarType compute_dtype,
               bool normalize)
      : query_(query),
        keys_({&keys}, normalize),
        loop_(query.embeddings(compute_dtype), keys_.embeddings(compute_dtype), scale, Pairs{}) {}

  // statistic[i] = log(exp(statistic[i]) + sum_j exp(z_ij)) of each query. With weigh, the same
  // visit makes what the queries' gradient will be made of; the keys then get none.
  void add_to(T* statistic, bool weigh) {
    lse_.resize(query_.count());
    if (weigh) {
      loop_.isolate_nonfinite();
      weighted_.resize(query_.count() * query_.width());
      logsumexp_weighted_key(loop_, lse_.data(), weighted_.data());
    } else {
      fold<LogSumExp<T>>(loop_, {lse_.data(), nullptr}, {});
    }
    for (int64_t i = 0; i < query_.count(); ++i) {
      LogSumExp<T> both = LogSumExp<T>::nothing();
      both.merge(LogSumExp<T>::of(statistic[i]));
      both.merge(LogSumExp<T>::of(lse_[i]));
      statistic[i] = both.value();
    }
  }

  // For the gradient of the statistic that these keys are part of: adds to the queries', makes that
  // of the keys (each may be null), and returns that of the scale. The keys' starts at 0.
  T add_gradients(Upstream<T> row, T* grad_query, T* grad_keys) {
    T grad_scale = 0;
    std::vector<T> more = std::move(weighted_);
    if (!more.empty()) {
      weigh_by_share(row, more.data());
      grad_scale = static_cast<T>(scale_gradient(loop_.query(), more.data(), loop_.scale()));
    } else {
      loop_.isolate_nonfinite();
      const bool by_query = grad_query || !grad_keys;  // the scale's is made of either
      if (by_query) more.resize(query_.count() * query_.width());
      gradients<LogSumExp<T>>(loop_, row, {}, by_query ? more.data() : nullptr, grad_keys,
                              &grad_scale);
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
  // Weighted keys of each query, times the gradient with respect to these keys' own statistic. If
  // they are no part of the whole they weigh nothing, whatever comes from upstream.
  void weigh_by_share(Upstream<T> row, T* weighted) const {
    const int64_t width = query_.width();
    for_each_row(query_.count(), width, [&](int64_t i) {
      const T share = LogSumExp<T>::weight(lse_[i], row.value[i]);
      T* const x = weighted + i * width;
      if (lse_[i] == -kInfinity<T> || share == 0)
        std::fill_n(x, width, T(0));
      else
        for (int64_t d = 0; d < width; ++d) x[d] *= row.grad[i] * share;
    });
  }

  const Rows<T>& query_;
  Rows<T> keys_;
  TileLoop<T> loop_;
  std::vector<T> lse_, weighted_;  // [M], [M, D]
};

}  // namespace cl::cpu
