#include "visits.h"

namespace cl::cuda {
namespace {

// The fold's states of all rows, or of all columns.
template <class Fold, class T = typename Fold::Number>
class States {
  static_assert(sizeof(Fold) % sizeof(T) == 0 && alignof(Fold) <= 16);

 public:
  States(const Slabs<T>& slabs, int64_t count)
      : tensor_(slabs.scratch({count, static_cast<int64_t>(sizeof(Fold) / sizeof(T))})) {
    FoldKernels<Fold>::start(first(), count);
  }

  Fold* first() const { return mutable_data<Fold>(tensor_); }

 private:
  Tensor tensor_;
};

}  // namespace

template <class Fold, class T>
void fold(const Loop<T>& slabs, Outputs<T> row, Outputs<T> col) {
  using Kernels = FoldKernels<Fold>;
  const int64_t M = slabs.query().rows(), N = col.value ? slabs.key().rows() : 0;
  const States<Fold> rows(slabs, M), cols(slabs, N);
  for (const Range& r : slabs.row_ranges())
    for (const Range& k : slabs.key_ranges()) {
      const Slab<T> slab = slabs.dots(r, k);
      Kernels::fold_rows(slabs.problem(), slab, rows.first());
      if (col.value) Kernels::fold_cols(slabs.problem(), slab, cols.first());
    }
  Kernels::write(rows.first(), M, row);
  Kernels::write(cols.first(), N, col);
}

template <class T>
void logsumexp_weighted_key(const Loop<T>& slabs, T* row, T* weighted_key) {
  using Kernels = FoldKernels<LogSumExp<T>>;
  const States<LogSumExp<T>> rows(slabs, slabs.query().rows());
  const std::vector<Range>& chunks = slabs.key_ranges();
  for (const Range& r : slabs.row_ranges()) {
    Slab<T> slab;
    for (const Range& k : chunks) {
      slab = slabs.dots(r, k);
      Kernels::fold_rows(slabs.problem(), slab, rows.first());
    }
    Kernels::write(rows.first() + r.begin, r.count, {row + r.begin, nullptr});
    for (const Range& k : chunks) {
      if (chunks.size() > 1) slab = slabs.dots(r, k);
      weigh<LogSumExp<T>>(slabs.problem(), slab, {nullptr, row}, {nullptr, nullptr}, false);
      slabs.add_weighted(slab, weighted_key);
    }
  }
}

#define CL_INSTANTIATE(FOLD)                                                           \
  template void fold<FOLD<float>>(const Loop<float>&, Outputs<float>, Outputs<float>); \
  template void fold<FOLD<double>>(const Loop<double>&, Outputs<double>, Outputs<double>);
CL_EACH_FOLD(CL_INSTANTIATE)
template void logsumexp_weighted_key(const Loop<float>&, float*, float*);
template void logsumexp_weighted_key(const Loop<double>&, double*, double*);

}  // namespace cl::cuda
