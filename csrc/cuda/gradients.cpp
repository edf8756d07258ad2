#include "visits.h"

namespace cl::cuda {

template <class Fold, class T>
void gradients(const Loop<T>& slabs, Upstream<T> row, Upstream<T> col, const Gradients<T>& grad) {
  const Problem<T>& problem = slabs.problem();
  const Upstream<T> of_cols = slabs.is_self() ? row : col;
  for (const Range& r : slabs.row_ranges())
    for (const Range& k : slabs.key_ranges()) {
      const Slab<T> slab = slabs.dots(r, k);
      weigh<Fold>(problem, slab, row, of_cols, slabs.is_self());
      if (grad.query) slabs.add_weighted(slab, grad.query);
      if (grad.key) slabs.add_weighted_transposed(slab, grad.key);
    }

  const Tensor partial =
      torch::stable::new_empty(slabs.query().tensor(), {kPartialSums}, ScalarType::Double);
  const auto finish = [&](const Embeddings<T>& rows, T* of_rows) {
    scale_and_dot(rows.first(), of_rows, rows.rows() * rows.width(), problem.scale,
                  slabs.is_self() ? 0.5 : 1., mutable_data<double>(partial), grad.scale);
  };
  if (grad.key) finish(slabs.key(), grad.key);
  if (grad.query) finish(slabs.query(), grad.query);  // of the two equal sums the one that is kept
}

#define CL_INSTANTIATE(FOLD)                                                                     \
  template void gradients<FOLD<float>>(const Loop<float>&, Upstream<float>, Upstream<float>,     \
                                       const Gradients<float>&);                                 \
  template void gradients<FOLD<double>>(const Loop<double>&, Upstream<double>, Upstream<double>, \
                                        const Gradients<double>&);
CL_EACH_FOLD(CL_INSTANTIATE)

}  // namespace cl::cuda
