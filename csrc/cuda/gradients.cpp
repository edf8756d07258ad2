#include "visits.h"

namespace cl::cuda {

template <class Fold, class T>
void gradients(const Loop<T>& slabs, Upstream<T> row, Upstream<T> col, T* grad_query, T* grad_key,
               T* grad_scale) {
  const Problem<T>& problem = slabs.problem();
  const Upstream<T> of_cols = slabs.is_self() ? row : col;
  for (const Range& r : slabs.row_ranges())
    for (const Range& k : slabs.key_ranges()) {
      const Slab<T> slab = slabs.dots(r, k);
      weigh<Fold>(problem, slab, row, of_cols, slabs.is_self());
      if (grad_query) slabs.add_weighted(slab, grad_query);
      if (grad_key) slabs.add_weighted_transposed(slab, grad_key);
    }

  const Tensor partial =
      torch::stable::new_empty(slabs.query().tensor(), {kPartialSums}, ScalarType::Double);
  const auto finish = [&](const Rows<T>& rows, T* grad) {
    scale_and_dot(rows.first(), grad, rows.rows() * rows.width(), problem.scale,
                  slabs.is_self() ? 0.5 : 1., mutable_data<double>(partial), grad_scale);
  };
  if (grad_key) finish(slabs.key(), grad_key);
  if (grad_query) finish(slabs.query(), grad_query);  // of the two equal sums the one that is kept
}

template void gradients<LogSumExp<float>>(const Loop<float>&, Upstream<float>, Upstream<float>,
                                          float*, float*, float*);
template void gradients<LogSumExp<double>>(const Loop<double>&, Upstream<double>, Upstream<double>,
                                           double*, double*, double*);

}  // namespace cl::cuda
