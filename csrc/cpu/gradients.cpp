#include "visits.h"

namespace cl::cpu {
namespace {

// The upstream of one side, where an empty row (lse = -inf) weighs exactly nothing.
template <class T>
class Side {
 public:
  Side(Upstream<T> upstream, int64_t count) {
    if (!upstream.grad) return;
    grad_.assign(upstream.grad, upstream.grad + count);
    lse_.assign(upstream.lse, upstream.lse + count);
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < count; ++i) {
      if (lse_[i] == -infinity) {
        grad_[i] = 0;
        lse_[i] = infinity;
      } else if (!std::isfinite(lse_[i]) || !std::isfinite(grad_[i])) {
        finite_ = false;
      }
    }
  }

  bool used() const { return !grad_.empty(); }
  bool finite() const { return finite_; }
  const T* grad(int64_t i) const { return grad_.data() + i; }
  const T* lse(int64_t i) const { return lse_.data() + i; }

 private:
  std::vector<T> grad_, lse_;
  bool finite_ = true;
};

// Turns a tile of logits into weights, in place.
template <class T>
class Weights {
 public:
  // With careful, dropped pairs weigh exactly 0 even where a statistic is not finite.
  Weights(const TileLoop<T>& loop, const Side<T>& row, const Side<T>& col, bool careful)
      : loop_(loop), row_(row), col_(col), careful_(careful) {}

  void operator()(const Tile<T>& tile) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    const T scale = loop_.scale();
    const T *row_grad = row_.grad(tile.i0), *row_lse = row_.lse(tile.i0);
    if (!careful_ && col_.used()) {
      kernels.row_col_weights(tile.logits, tile.mirrored, tile.m, tile.n, scale, row_grad, row_lse,
                              col_.grad(tile.j0), col_.lse(tile.j0));
      return;
    }
    kernels.row_weights(tile.logits, tile.m, tile.n, scale, row_grad, row_lse);
    if (!careful_) return;
    loop_.drop(tile, tile.logits, T(0));
    if (!col_.used()) return;
    kernels.col_weights(tile.mirrored, tile.m, tile.n, scale, col_.grad(tile.j0),
                        col_.lse(tile.j0));
    loop_.drop_mirrored(tile, tile.mirrored, T(0));
    for (int64_t p = 0; p < tile.m * tile.n; ++p) tile.logits[p] += tile.mirrored[p];
  }

 private:
  const TileLoop<T>& loop_;
  const Side<T>&row_, &col_;
  bool careful_;
};

// Multiplies the gradient by the scale; returns <rows, gradient> of before, added in fixed order.
template <class T>
double finish(const Embeddings<T>& rows, T* grad, T scale) {
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

}  // namespace

template <class T>
T gradients(TileLoop<T>& loop, Upstream<T> row_upstream, Upstream<T> col_upstream, T scale,
            T* grad_query, T* grad_key) {
  const int64_t width = loop.query().width();
  const bool is_self = grad_query == grad_key;
  const Side<T> row(row_upstream, loop.query().rows());
  const Side<T> col(col_upstream, loop.key().rows());
  const bool careful = loop.isolate_nonfinite() || !row.finite() || !col.finite();
  if (careful && col.used()) loop.separate_sides();
  const Products<T>& products = loop.products();
  const Weights<T> weigh(loop, row, col, careful);
  Abort abort;
  Turns row_turns(loop.row_blocks(), abort), col_turns(loop.col_blocks(), abort);
  Turns& turns_of_cols = is_self ? row_turns : col_turns;

  const auto visit = [&](const Tile<T>& tile, Workspace<T>&) {
    weigh(tile);
    if (grad_query)
      row_turns.in_turn(tile.at.row, tile.at.row_turn, [&] {
        products.add_weighted(tile.logits, tile.key, grad_query + tile.i0 * width, tile.m, tile.n);
      });
    if (grad_key && !tile.diagonal)
      turns_of_cols.in_turn(tile.at.col, tile.at.col_turn, [&] {
        products.add_weighted_transposed(tile.logits, tile.query, grad_key + tile.j0 * width,
                                         tile.m, tile.n);
      });
  };
  const auto skip = [&](const Tile<T>& tile) {
    if (grad_query) row_turns.in_turn(tile.at.row, tile.at.row_turn, [] {});
    if (grad_key && !tile.diagonal) turns_of_cols.in_turn(tile.at.col, tile.at.col_turn, [] {});
  };
  loop.run(abort, visit, skip);

  double grad_scale = 0;
  if (grad_query) grad_scale = finish(loop.query(), grad_query, scale);
  if (grad_key && !is_self) {
    const double by_key = finish(loop.key(), grad_key, scale);
    if (!grad_query) grad_scale = by_key;
  }
  return static_cast<T>(is_self ? grad_scale / 2 : grad_scale);
}

template float gradients(TileLoop<float>&, Upstream<float>, Upstream<float>, float, float*, float*);
template double gradients(TileLoop<double>&, Upstream<double>, Upstream<double>, double, double*,
                          double*);

}  // namespace cl::cpu
