#include "contrast.h"

#include <cmath>
#include <memory>

#include "tensors.h"
#include "visits.h"

namespace cl::cpu {
namespace {

constexpr int64_t kGrain = 16384;  // numbers a thread takes at least

template <class F>
void for_each_row(int64_t rows, int64_t width, const F& f) {
  for_each_range(rows, 1 + kGrain / std::max<int64_t>(width, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Embeddings in T, of unit length if wanted; inputs are stacked. One input that is as wanted
// already is not copied.
template <class T>
class Rows {
 public:
  Rows(std::initializer_list<const Tensor*> inputs, bool normalize)
      : width_((*inputs.begin())->size(1)) {
    for (const Tensor* input : inputs) count_ += input->size(0);
    const Tensor& first = **inputs.begin();
    if (inputs.size() == 1 && !normalize && first.scalar_type() == accumulator(first)) {
      rows_ = data<T>(first);
      return;
    }
    owned_.reset(new T[count_ * width_]);
    rows_ = owned_.get();
    if (normalize) norm_.resize(count_);
    int64_t offset = 0;
    for (const Tensor* input : inputs) {
      const Embeddings<T> given(*input, input->scalar_type());
      for_each_row(given.rows(), width_, [&](int64_t i) { take(given, i, offset + i); });
      offset += given.rows();
    }
  }

  Embeddings<T> embeddings(ScalarType compute_dtype) const {
    return Embeddings<T>(rows_, count_, width_, compute_dtype);
  }
  const T* row(int64_t i) const { return rows_ + i * width_; }

  // Adds pull * partner to the row's gradient and takes it back through the normalisation.
  void finish_gradient(int64_t i, T* grad, T pull, const T* partner) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    kernels.combine(T(1), grad, pull, partner, width_);
    if (norm_.empty()) return;
    const T along = kernels.dot(row(i), grad, width_);
    kernels.combine(1 / norm_[i], grad, -along / norm_[i], row(i), width_);
  }

 private:
  void take(const Embeddings<T>& given, int64_t from, int64_t to) {
    T* row = owned_.get() + to * width_;
    const T* x = given.block(from, 1, row);
    T factor = 1;
    if (!norm_.empty()) {
      // As torch.nn.functional.normalize: a zero row stays zero instead of becoming NaN.
      const T norm = std::sqrt(tile_kernels<T>().dot(x, x, width_));
      factor = norm_[to] = norm < T(1e-12) ? T(1e-12) : norm;
    }
    for (int64_t d = 0; d < width_; ++d) row[d] = x[d] / factor;
  }

  int64_t width_, count_ = 0;
  const T* rows_;
  std::unique_ptr<T[]> owned_;
  std::vector<T> norm_;
};

template <class T>
T softplus(T x) {
  return (x > 0 ? x : T(0)) + std::log1p(std::exp(-std::abs(x)));
}

template <class T>
T sigmoid(T x) {
  const T small = std::exp(-std::abs(x));
  return x > 0 ? 1 / (1 + small) : small / (1 + small);
}

// d total / d loss of one of so many rows.
template <class T>
T share_of(int64_t rows, bool mean) {
  return mean ? T(1) / static_cast<T>(std::max<int64_t>(rows, 1)) : T(1);
}

}  // namespace

template <class T>
ViewsContrast contrast_views(const Tensor& view_0, const Tensor& view_1, const Tensor& scale_tensor,
                             const Options& options, bool normalize, bool mean,
                             const std::vector<bool>& needs) {
  const int64_t batch = view_0.size(0), width = view_0.size(1);
  const Rows<T> rows({&view_0, &view_1}, normalize);
  const T scale = *data<T>(scale_tensor);
  TileLoop<T> loop(rows.embeddings(options.compute_dtype), scale, options);
  std::vector<T> lse(2 * batch), pull(2 * batch), similarity(batch);
  const T share = share_of<T>(2 * batch, mean);
  logsumexp<T>(loop, lse.data(), lse.data());
  Tensor losses = empty(view_0, {2 * batch});
  T* loss = mutable_data<T>(losses);
  for_each_row(batch, width, [&](int64_t i) {
    similarity[i] = tile_kernels<T>().dot(rows.row(i), rows.row(batch + i), width);
    for (const int64_t row : {i, batch + i}) {
      const T margin = lse[row] - scale * similarity[i];
      loss[row] = softplus(margin);
      pull[row] = sigmoid(margin) * share;
    }
  });
  if (!needs[0] && !needs[1] && !needs[2])
    return {losses, scalar<T>(view_0, 0), empty(view_0, {0})};

  Tensor grad_rows = zeros(view_0, {2 * batch, width});
  T* grad = mutable_data<T>(grad_rows);
  const Upstream<T> upstream{pull.data(), lse.data()};
  double grad_scale = gradients<T>(loop, upstream, upstream, scale, grad, grad);
  for (int64_t i = 0; i < batch; ++i) grad_scale -= (pull[i] + pull[batch + i]) * similarity[i];
  for_each_row(2 * batch, width, [&](int64_t row) {
    const int64_t i = row % batch, other = row < batch ? row + batch : i;
    const T both = -scale * (pull[i] + pull[batch + i]);
    rows.finish_gradient(row, grad + row * width, both, rows.row(other));
  });
  return {losses, scalar(view_0, static_cast<T>(grad_scale)), grad_rows};
}

template <class T>
PairsContrast contrast_pairs(const Tensor& query, const Tensor& key, const Tensor& scale_tensor,
                             const Options& options, bool normalize, bool mean,
                             const std::vector<bool>& needs, bool symmetric) {
  const int64_t batch = query.size(0), width = query.size(1);
  const Rows<T> queries({&query}, normalize), keys({&key}, normalize);
  const T scale = *data<T>(scale_tensor);
  TileLoop<T> loop(queries.embeddings(options.compute_dtype),
                   keys.embeddings(options.compute_dtype), scale, options);
  std::vector<T> row(batch), col(symmetric ? batch : 0), similarity(batch);
  std::vector<T> row_pull(batch), col_pull(col.size());
  logsumexp<T>(loop, row.data(), symmetric ? col.data() : nullptr);
  Tensor losses = empty(query, {batch});
  T* loss = mutable_data<T>(losses);
  const T weight = symmetric ? T(0.5) : T(1), share = share_of<T>(batch, mean);
  for_each_row(batch, width, [&](int64_t i) {
    similarity[i] = tile_kernels<T>().dot(queries.row(i), keys.row(i), width);
    const T positive = scale * similarity[i];
    loss[i] = weight * softplus(row[i] - positive);
    row_pull[i] = weight * sigmoid(row[i] - positive) * share;
    if (!symmetric) return;
    loss[i] += weight * softplus(col[i] - positive);
    col_pull[i] = weight * sigmoid(col[i] - positive) * share;
  });
  const bool need_query = needs[1] || (needs[0] && !needs[2]), need_key = needs[2];
  Tensor grad_query = zeros_if(need_query, query), grad_key = zeros_if(need_key, key);
  if (!need_query && !need_key) return {losses, scalar<T>(query, 0), grad_query, grad_key};

  T* by_query = need_query ? mutable_data<T>(grad_query) : nullptr;
  T* by_key = need_key ? mutable_data<T>(grad_key) : nullptr;
  const Upstream<T> of_rows{row_pull.data(), row.data()};
  const Upstream<T> of_cols =
      symmetric ? Upstream<T>{col_pull.data(), col.data()} : Upstream<T>{nullptr, nullptr};
  double grad_scale = gradients<T>(loop, of_rows, of_cols, scale, by_query, by_key);
  const auto pull = [&](int64_t i) { return row_pull[i] + (symmetric ? col_pull[i] : T(0)); };
  for (int64_t i = 0; i < batch; ++i) grad_scale -= pull(i) * similarity[i];
  for_each_row(batch, width, [&](int64_t i) {
    const T both = -scale * pull(i);
    if (by_query) queries.finish_gradient(i, by_query + i * width, both, keys.row(i));
    if (by_key) keys.finish_gradient(i, by_key + i * width, both, queries.row(i));
  });
  return {losses, scalar(query, static_cast<T>(grad_scale)), grad_query, grad_key};
}

#define CL_INSTANTIATE(T)                                                                         \
  template ViewsContrast contrast_views<T>(const Tensor&, const Tensor&, const Tensor&,           \
                                           const Options&, bool, bool, const std::vector<bool>&); \
  template PairsContrast contrast_pairs<T>(const Tensor&, const Tensor&, const Tensor&,           \
                                           const Options&, bool, bool, const std::vector<bool>&,  \
                                           bool);
CL_INSTANTIATE(float)
CL_INSTANTIATE(double)

}  // namespace cl::cpu
