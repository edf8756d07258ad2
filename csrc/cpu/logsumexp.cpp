#include "../statistics.h"
#include "visits.h"

namespace cl::cpu {
namespace {

template <class T>
using Running = std::vector<RunningLogSumExp<T>>;

template <class T>
void merge(RunningLogSumExp<T>* state, const T* max, const T* sum, int64_t count, T scale) {
  for (int64_t i = 0; i < count; ++i) state[i].merge(max[i], sum[i], scale);
}

template <class T>
void write(const Running<T>& state, T scale, T* lse) {
  for (size_t i = 0; i < state.size(); ++i) lse[i] = state[i].value(scale);
}

}  // namespace

template <class T>
void logsumexp(const TileLoop<T>& loop, T* row, T* col) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const T scale = loop.scale();
  const bool is_self = row == col;
  Abort abort;
  Turns row_turns(loop.row_blocks(), abort), col_turns(loop.col_blocks(), abort);
  Running<T> rows(loop.query().rows()), cols(col && !is_self ? loop.key().rows() : 0);
  Turns& turns_of_cols = is_self ? row_turns : col_turns;
  Running<T>& state_of_cols = is_self ? rows : cols;

  const auto visit = [&](const Tile<T>& tile, Workspace<T>& space) {
    T *row_max = space.row_max.get(), *row_sum = space.row_sum.get();
    T *col_max = space.col_max.get(), *col_sum = space.col_sum.get();
    kernels.fold_rows(tile.logits, tile.m, tile.n, scale, row_max, row_sum);
    row_turns.in_turn(tile.at.row, tile.at.row_turn,
                      [&] { merge(rows.data() + tile.i0, row_max, row_sum, tile.m, scale); });
    if (!col || tile.diagonal) return;
    kernels.fold_cols(tile.mirrored, tile.m, tile.n, scale, col_max, col_sum);
    turns_of_cols.in_turn(tile.at.col, tile.at.col_turn, [&] {
      merge(state_of_cols.data() + tile.j0, col_max, col_sum, tile.n, scale);
    });
  };
  const auto skip = [&](const Tile<T>& tile) {
    row_turns.in_turn(tile.at.row, tile.at.row_turn, [] {});
    if (col && !tile.diagonal) turns_of_cols.in_turn(tile.at.col, tile.at.col_turn, [] {});
  };
  loop.run(abort, visit, skip);
  write(rows, scale, row);
  if (col && !is_self) write(cols, scale, col);
}

template <class T>
void logsumexp_mean_key(TileLoop<T>& loop, T* row, T* mean_key) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const int64_t width = loop.query().width();
  loop.isolate_nonfinite();
  const T scale = loop.scale();
  Abort abort;
  Turns turns(loop.row_blocks(), abort);
  Running<T> rows(loop.query().rows());

  const auto visit = [&](const Tile<T>& tile, Workspace<T>& space) {
    T *max = space.row_max.get(), *sum = space.row_sum.get();
    kernels.max_rows(tile.logits, tile.m, tile.n, max);
    turns.in_turn(tile.at.row, tile.at.row_turn, [&] {
      for (int64_t i = 0; i < tile.m; ++i) {
        RunningLogSumExp<T>& state = rows[tile.i0 + i];
        T* total = mean_key + (tile.i0 + i) * width;
        if (max[i] > state.max) {
          const T shrink = std::exp((state.max - max[i]) * scale);
          for (int64_t d = 0; d < width; ++d) total[d] *= shrink;
          state.sum *= shrink;
          state.max = max[i];
        }
        max[i] = state.max;
      }
      kernels.exp_rows(tile.logits, tile.m, tile.n, scale, max, sum);
      for (int64_t i = 0; i < tile.m; ++i) rows[tile.i0 + i].sum += sum[i];
      loop.products().add_weighted(tile.logits, tile.key, mean_key + tile.i0 * width, tile.m,
                                   tile.n);
    });
  };
  const auto skip = [&](const Tile<T>& tile) {
    turns.in_turn(tile.at.row, tile.at.row_turn, [] {});
  };
  loop.run(abort, visit, skip);
  write(rows, scale, row);
  for_each_range(loop.query().rows(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = 0; d < width; ++d)
        mean_key[i * width + d] = rows[i].sum == 0 ? 0 : mean_key[i * width + d] / rows[i].sum;
  });
}

template void logsumexp(const TileLoop<float>&, float*, float*);
template void logsumexp(const TileLoop<double>&, double*, double*);
template void logsumexp_mean_key(TileLoop<float>&, float*, float*);
template void logsumexp_mean_key(TileLoop<double>&, double*, double*);

}  // namespace cl::cpu
