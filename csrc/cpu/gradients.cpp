#include "visits.h"

namespace cl::cpu {

template <class T>
double scale_gradient(const Embeddings<T>& rows, T* grad, T scale) {
  constexpr int64_t block = 64, grain = 32768;  // numbers a thread takes at least
  const int64_t width = rows.width(), blocks = (rows.rows() + block - 1) / block;
  std::vector<double> partial(blocks);
  for_each_range(blocks, 1 + grain / std::max<int64_t>(block * width, 1),
                 [&](int64_t begin, int64_t end) {
                   std::vector<T> buffer(rows.copies() ? block * width : 0);
                   for (int64_t b = begin; b < end; ++b) {
                     const int64_t i0 = b * block, count = std::min(block, rows.rows() - i0);
                     const T* x = rows.block(i0, count, buffer.data());
                     for (int64_t i = 0; i < count; ++i)
                       partial[b] += tile_kernels<T>().scale_and_dot(
                           x + i * width, grad + (i0 + i) * width, width, scale);
                   }
                 });
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

template <class Fold, class T>
void gradients(const Loop<T>& loop, Upstream<T> row, Upstream<T> col, T* grad_query, T* grad_key,
               T* grad_scale) {
  const FoldKernels<Fold>& kernels = tile_kernels<T>().template of<Fold>();
  const Products<T>& products = loop.products();
  const int64_t width = loop.query().width();
  const bool is_self = loop.is_self();
  const Upstream<T> of_cols = is_self ? row : col;
  T* const grad_cols = is_self ? grad_query : grad_key;

  const auto weigh = [&](const Tile<T>& tile) {
    const Upstream<T> rows = row.from(tile.i0);
    if (of_cols.value)
      kernels.row_col_weights(tile.logits, tile.mirrored, tile.m, tile.n, rows,
                              of_cols.from(tile.j0));
    else
      kernels.row_weights(tile.logits, tile.m, tile.n, rows);
  };
  const AddsTo adds_to{grad_query != nullptr, grad_cols != nullptr};
  loop.run(adds_to, [&](const Tile<T>& tile, const TileTurns& turns) {
    weigh(tile);
    turns.rows([&] {
      products.add_weighted(tile.logits, tile.key, grad_query + tile.i0 * width, tile.m, tile.n);
    });
    turns.cols([&] {
      products.add_weighted_transposed(tile.logits, tile.query, grad_cols + tile.j0 * width, tile.m,
                                       tile.n);
    });
  });

  double inner = 0;  // the same by either gradient
  if (grad_key) inner = scale_gradient(loop.key(), grad_key, loop.scale());
  if (grad_query) inner = scale_gradient(loop.query(), grad_query, loop.scale());
  *grad_scale = static_cast<T>(is_self ? inner / 2 : inner);
}

template double scale_gradient(const Embeddings<float>&, float*, float);
template double scale_gradient(const Embeddings<double>&, double*, double);
template void gradients<LogSumExp<float>>(const Loop<float>&, Upstream<float>, Upstream<float>,
                                          float*, float*, float*);
template void gradients<LogSumExp<double>>(const Loop<double>&, Upstream<double>, Upstream<double>,
                                           double*, double*, double*);

}  // namespace cl::cpu
