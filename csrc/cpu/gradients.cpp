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

namespace {

// What a tile adds to the gradients of biases: sums over its rows and columns, of the weights of
// pairs (i, j) and, off a Gram matrix's diagonal, of pairs (j, i). Only there are rows keys too.
template <class T>
struct BiasSums {
  T query_rows[kMostRows] = {}, key_cols[kMostRows] = {};
  T key_rows[kMostRows] = {}, query_cols[kMostRows] = {};
  bool mirrored = false;

  void add_pairs(const Tile<T>& tile) {
    tile_kernels<T>().add_row_sums(tile.logits, tile.m, tile.n, query_rows);
    tile_kernels<T>().add_col_sums(tile.logits, tile.m, tile.n, key_cols);
  }

  void add_mirrored(const Tile<T>& tile) {
    mirrored = true;
    tile_kernels<T>().add_row_sums(tile.mirrored, tile.m, tile.n, key_rows);
    tile_kernels<T>().add_col_sums(tile.mirrored, tile.m, tile.n, query_cols);
  }

  void to_rows(const Tile<T>& tile, const Gradients<T>& grad) const {
    add(grad.query_bias, tile.i0, query_rows, tile.m);
    if (mirrored) add(grad.key_bias, tile.i0, key_rows, tile.m);
    if (tile.diagonal) add(grad.key_bias, tile.j0, key_cols, tile.n);
  }

  void to_cols(const Tile<T>& tile, const Gradients<T>& grad) const {
    add(grad.key_bias, tile.j0, key_cols, tile.n);
    if (mirrored) add(grad.query_bias, tile.j0, query_cols, tile.n);
  }

 private:
  static void add(T* total, int64_t first, const T* sums, int64_t count) {
    if (!total) return;
    for (int64_t i = 0; i < count; ++i) total[first + i] += sums[i];
  }
};

// Turns a tile of logits into weights.
template <class Fold, class T = typename Fold::Number>
class Weigh {
 public:
  Weigh(bool is_self, Upstream<T> row, Upstream<T> col)
      : is_self_(is_self), row_(row), col_(is_self ? row : col) {}

  void operator()(const Tile<T>& tile) const {
    const Upstream<T> row = row_.from(tile.i0);
    if (col_.value)
      kernels_.row_col_weights(tile.logits, tile.mirrored, tile.m, tile.n, row, col_.from(tile.j0));
    else
      kernels_.row_weights(tile.logits, tile.m, tile.n, row);
  }

  // Biases make a Gram matrix's logits differ from mirrored ones, which have a buffer of their own.
  void operator()(const Tile<T>& tile, BiasSums<T>& sums) const {
    if (!is_self_) {
      (*this)(tile);
      sums.add_pairs(tile);
      return;
    }
    kernels_.row_weights(tile.logits, tile.m, tile.n, row_.from(tile.i0));
    kernels_.col_weights(tile.mirrored, tile.m, tile.n, col_.from(tile.j0));
    sums.add_pairs(tile);
    if (!tile.diagonal) sums.add_mirrored(tile);
    for (int64_t p = 0; p < tile.m * tile.n; ++p) tile.logits[p] += tile.mirrored[p];
  }

 private:
  const FoldKernels<Fold>& kernels_ = tile_kernels<T>().template of<Fold>();
  bool is_self_;
  Upstream<T> row_, col_;
};

}  // namespace

template <class Fold, class T>
void gradients(const Loop<T>& loop, Upstream<T> row, Upstream<T> col, const Gradients<T>& grad) {
  const Products<T>& products = loop.products();
  const int64_t width = loop.query().width();
  const bool is_self = loop.is_self(), biases = grad.query_bias || grad.key_bias;
  T* const grad_cols = is_self ? grad.query : grad.key;
  const Weigh<Fold> weigh(is_self, row, col);
  const auto add_rows = [&](const Tile<T>& tile) {
    if (grad.query)
      products.add_weighted(tile.logits, tile.key, grad.query + tile.i0 * width, tile.m, tile.n);
  };
  const auto add_cols = [&](const Tile<T>& tile) {
    if (grad_cols)
      products.add_weighted_transposed(tile.logits, tile.query, grad_cols + tile.j0 * width, tile.m,
                                       tile.n);
  };
  if (biases)
    loop.run({true, true}, [&](const Tile<T>& tile, const TileTurns& turns) {
      BiasSums<T> sums;
      weigh(tile, sums);
      turns.rows([&] { add_rows(tile), sums.to_rows(tile, grad); });
      turns.cols([&] { add_cols(tile), sums.to_cols(tile, grad); });
    });
  else
    loop.run({grad.query != nullptr, grad_cols != nullptr},
             [&](const Tile<T>& tile, const TileTurns& turns) {
               weigh(tile);
               turns.rows([&] { add_rows(tile); });
               turns.cols([&] { add_cols(tile); });
             });

  double inner = 0;  // the same by either gradient
  if (grad.key) inner = scale_gradient(loop.key(), grad.key, loop.scale());
  if (grad.query) inner = scale_gradient(loop.query(), grad.query, loop.scale());
  *grad.scale = static_cast<T>(is_self ? inner / 2 : inner);
}

template double scale_gradient(const Embeddings<float>&, float*, float);
template double scale_gradient(const Embeddings<double>&, double*, double);
#define CL_INSTANTIATE(FOLD)                                                                     \
  template void gradients<FOLD<float>>(const Loop<float>&, Upstream<float>, Upstream<float>,     \
                                       const Gradients<float>&);                                 \
  template void gradients<FOLD<double>>(const Loop<double>&, Upstream<double>, Upstream<double>, \
                                        const Gradients<double>&);
CL_EACH_FOLD(CL_INSTANTIATE)

}  // namespace cl::cpu
