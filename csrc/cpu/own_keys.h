// Negatives that each query has for itself: no tile is shared, a dot product each. Of what is said
// of pairs only the queries' biases hold for them.
#pragma once
#include "rows.h"

namespace cl::cpu {

template <class Fold>
class OwnKeys {
  using T = typename Fold::Number;

 public:
  // keys [M * K, width], and which of each query's count, [M, K]; the others are never read.
  OwnKeys(const Rows<T>& query, const Tensor& keys, const Tensor& counted, T scale,
          const T* query_bias, bool normalize)
      : query_(query),
        keys_({&keys}, normalize),
        counted_(counted.const_data_ptr<bool>()),
        each_(counted.size(1)),
        scale_(scale),
        query_bias_(query_bias) {}

  // Makes statistic [M] that of these keys too.
  void add_to(T* statistic) const {
    each_query([&](int64_t i) {
      Fold all = Fold::nothing();
      each_key(i, [&](int64_t, T, T logit) { all.merge(Fold::of(logit)); });
      T value;
      int64_t count;
      all.write({&value, &count}, 0);
      statistic[i] = Fold::both(statistic[i], value);
    });
  }

  // As that of NegativeKeys.
  double add_gradients(Upstream<T> row, T* grad_query, T* grad_keys, T* grad_query_bias) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    const int64_t width = query_.width();
    std::vector<double> grad_scale(query_.count());
    each_query([&](int64_t i) {
      each_key(i, [&](int64_t j, T similarity, T logit) {
        if (logit == -kInfinity<T>) return;
        const T weight = row.grad[i] * Fold::weight(logit, row.value[i]);
        grad_scale[i] += weight * similarity;
        if (grad_query_bias) grad_query_bias[i] += weight;
        if (grad_query)
          kernels.combine(T(1), grad_query + i * width, scale_ * weight, keys_.row(j), width);
        if (!grad_keys) return;
        kernels.combine(T(1), grad_keys + j * width, scale_ * weight, query_.row(i), width);
        keys_.unnormalize(j, grad_keys + j * width);
      });
    });
    double sum = 0;
    for (const double of_row : grad_scale) sum += of_row;
    return sum;
  }

 private:
  template <class F>
  void each_query(const F& f) const {
    for_each_row(query_.count(), each_ * query_.width(), f);
  }

  // f(key, similarity, logit) for each key of query i that counts.
  template <class F>
  void each_key(int64_t i, const F& f) const {
    for (int64_t j = i * each_; j < (i + 1) * each_; ++j) {
      if (!counted_[j]) continue;
      const T similarity = tile_kernels<T>().dot(query_.row(i), keys_.row(j), query_.width());
      f(j, similarity, scale_ * similarity + (query_bias_ ? query_bias_[i] : T(0)));
    }
  }

  const Rows<T>& query_;
  Rows<T> keys_;
  const bool* counted_;
  int64_t each_;
  T scale_;
  const T* query_bias_;
};

}  // namespace cl::cpu
