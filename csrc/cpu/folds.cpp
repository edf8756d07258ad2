#include "visits.h"

namespace cl::cpu {
namespace {

template <class Fold>
void merge(Fold* into, const Fold* states, int64_t count) {
  for (int64_t i = 0; i < count; ++i) into[i].merge(states[i]);
}

template <class Fold, class T = typename Fold::Number>
void write(const std::vector<Fold>& states, Outputs<T> out) {
  for (size_t i = 0; i < states.size(); ++i) states[i].write(out, i);
}

// total /= sum, row by row; a row without a sum has a total of 0.
template <class T>
void divide(T* total, const std::vector<LogSumExp<T>>& rows, int64_t width) {
  constexpr int64_t grain = 256;
  for_each_range(rows.size(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = i * width; d < (i + 1) * width; ++d)
        total[d] = rows[i].sum == 0 ? 0 : total[d] / rows[i].sum;
  });
}

}  // namespace

template <class Fold, class T>
void fold(const Loop<T>& loop, Outputs<T> row, Outputs<T> col) {
  const FoldKernels<Fold>& kernels = tile_kernels<T>().template of<Fold>();
  const bool is_self = loop.is_self();
  std::vector<Fold> rows(loop.query().rows(), Fold::nothing());
  std::vector<Fold> cols(col.value ? loop.key().rows() : 0, Fold::nothing());
  std::vector<Fold>& of_cols = is_self ? rows : cols;
  loop.run({true, is_self || col.value}, [&](const Tile<T>& tile, const TileTurns& turns) {
    Fold states[kMostRows];
    kernels.fold_rows(tile.logits, tile.m, tile.n, states);
    turns.rows([&] { merge(rows.data() + tile.i0, states, tile.m); });
    if (!turns.adds_cols()) return;
    kernels.fold_cols(tile.mirrored, tile.m, tile.n, states);
    turns.cols([&] { merge(of_cols.data() + tile.j0, states, tile.n); });
  });
  write(rows, row);
  write(cols, col);
}

template <class T>
void logsumexp_weighted_key(const Loop<T>& loop, T* row, T* weighted_key) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const int64_t width = loop.query().width();
  std::vector<LogSumExp<T>> rows(loop.query().rows(), LogSumExp<T>::nothing());

  // Raises a row's maximum, to which its sum and its total are relative.
  const auto raise = [&](int64_t i, T max) {
    LogSumExp<T>& state = rows[i];
    if (!(max > state.max)) return;
    const T shrink = std::exp(state.max - max);
    for (int64_t d = i * width; d < (i + 1) * width; ++d) weighted_key[d] *= shrink;
    state = {max, state.sum * shrink};
  };
  loop.run({true, false}, [&](const Tile<T>& tile, const TileTurns& turns) {
    T max[kMostRows], sum[kMostRows];
    kernels.max_rows(tile.logits, tile.m, tile.n, max);
    turns.rows([&] {
      for (int64_t i = 0; i < tile.m; ++i) {
        raise(tile.i0 + i, max[i]);
        max[i] = rows[tile.i0 + i].max;
      }
      kernels.exp_rows(tile.logits, tile.m, tile.n, max, sum);
      for (int64_t i = 0; i < tile.m; ++i) rows[tile.i0 + i].sum += sum[i];
      loop.products().add_weighted(tile.logits, tile.key, weighted_key + tile.i0 * width, tile.m,
                                   tile.n);
    });
  });
  write(rows, {row, nullptr});
  divide(weighted_key, rows, width);
}

#define CL_INSTANTIATE(FOLD)                                                           \
  template void fold<FOLD<float>>(const Loop<float>&, Outputs<float>, Outputs<float>); \
  template void fold<FOLD<double>>(const Loop<double>&, Outputs<double>, Outputs<double>);
CL_EACH_FOLD(CL_INSTANTIATE)
template void logsumexp_weighted_key(const Loop<float>&, float*, float*);
template void logsumexp_weighted_key(const Loop<double>&, double*, double*);

}  // namespace cl::cpu
