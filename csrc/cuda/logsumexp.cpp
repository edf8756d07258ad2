#include "visits.h"

namespace cl::cuda {
namespace {

// The running statistics of all rows, or of all columns.
template <class T>
class Running {
  using State = RunningLogSumExp<T>;
  static_assert(sizeof(State) == 2 * sizeof(T));

 public:
  Running(const Slabs<T>& slabs, int64_t count)
      : tensor_(slabs.scratch({count, 2})), scale_(slabs.problem().scale) {
    start(state(), count);
  }

  State* state() const { return mutable_data<State>(tensor_); }

  void write(Range range, T* lse) const {
    cuda::write(state() + range.begin, range.count, scale_, lse + range.begin);
  }

 private:
  Tensor tensor_;
  const T* scale_;
};

}  // namespace

template <class T>
void logsumexp(const Slabs<T>& slabs, T* row, T* col) {
  const int64_t M = slabs.query().rows(), N = slabs.key().rows();
  const Running<T> rows(slabs, M), cols(slabs, col ? N : 0);
  for (const Range& r : slabs.row_ranges())
    for (const Range& k : slabs.key_ranges()) {
      const Slab<T> slab = slabs.dots(r, k);
      fold_rows(slabs.problem(), slab, rows.state());
      if (col) fold_cols(slabs.problem(), slab, cols.state());
    }
  rows.write({0, M}, row);
  if (col) cols.write({0, N}, col);
}

template <class T>
void logsumexp_mean_key(const Slabs<T>& slabs, T* row, T* mean_key) {
  const Running<T> rows(slabs, slabs.query().rows());
  const std::vector<Range>& chunks = slabs.key_ranges();
  for (const Range& r : slabs.row_ranges()) {
    Slab<T> slab;
    for (const Range& k : chunks) {
      slab = slabs.dots(r, k);
      fold_rows(slabs.problem(), slab, rows.state());
    }
    rows.write(r, row);
    for (const Range& k : chunks) {
      if (chunks.size() > 1) slab = slabs.dots(r, k);
      weigh(slabs.problem(), slab, Upstream<T>{nullptr, row}, Upstream<T>{nullptr, nullptr}, false);
      slabs.add_weighted(slab, mean_key);
    }
  }
}

template void logsumexp(const Slabs<float>&, float*, float*);
template void logsumexp(const Slabs<double>&, double*, double*);
template void logsumexp_mean_key(const Slabs<float>&, float*, float*);
template void logsumexp_mean_key(const Slabs<double>&, double*, double*);

}  // namespace cl::cuda
