// The one tile loop: loads, ragged edges, filters. Statistics (visits.h) say what becomes of a
// tile.
#pragma once
#include <cmath>
#include <limits>
#include <memory>

#include "embeddings.h"
#include "filters.h"
#include "parallel.h"
#include "products.h"
#include "tile_kernels.h"

namespace cl::cpu {

// Rows of a tile: a function of the shape alone, so that results do not depend on the machine.
// A tile fits the second-level cache. A problem that threads share has a few tiles for each. Very
// wide embeddings make small tiles, whose rows fit in memory and whose end a signal can wait for.
inline int64_t block_size(int64_t rows, int64_t width, bool shared) {
  constexpr int64_t most = 256, most_numbers = most << 15;
  const int64_t least = shared ? 32 : 64;
  const int64_t eighth = (rows / 8 + least - 1) / least * least;
  const int64_t narrow = most_numbers / std::max<int64_t>(width, 1) / least * least;
  return std::clamp<int64_t>(std::min(eighth, narrow), least, most);
}

template <class T>
struct Tile {
  ScheduledTile at;
  int64_t i0, m, j0, n;
  bool diagonal;   // of a Gram matrix
  T* logits;       // [m, n]; to be multiplied by the loop's scale; dropped pairs -inf
  T* mirrored;     // the same as the columns of a Gram matrix see it; often == logits
  const T* query;  // [m, width]
  const T* key;    // [n, width]
};

template <class T>
class Workspace {
 public:
  // Uninitialised: what a tile needs is written before it is read.
  Workspace(int64_t block_m, int64_t block_n, int64_t query_size, int64_t key_size,
            int64_t transposed_size)
      : logits(new T[block_m * block_n]),
        query(new T[query_size]),
        key(new T[key_size]),
        transposed(new T[transposed_size]),
        row_max(new T[block_m]),
        row_sum(new T[block_m]),
        col_max(new T[block_n]),
        col_sum(new T[block_n]) {}

  T* mirrored(int64_t size) {
    if (!mirrored_) mirrored_.reset(new T[size]);
    return mirrored_.get();
  }

  std::unique_ptr<T[]> logits, query, key, transposed, row_max, row_sum, col_max, col_sum;

 private:
  std::unique_ptr<T[]> mirrored_;
};

template <class T>
class TileLoop {
 public:
  // All pairs of query and key.
  TileLoop(const Embeddings<T>& query, const Embeddings<T>& key, T scale, const Options& options)
      : TileLoop(query, key, scale, options, false) {}

  // The pairs of x with itself, each tile and its mirror image once.
  TileLoop(const Embeddings<T>& x, T scale, const Options& options)
      : TileLoop(x, x, scale, options, true) {}

  const Embeddings<T>& query() const { return query_; }
  const Embeddings<T>& key() const { return is_self_ ? query_ : key_; }
  int64_t row_blocks() const { return blocks(query().rows(), block_m_); }
  int64_t col_blocks() const { return blocks(key().rows(), block_n_); }
  T scale() const { return magnitude_; }
  const Products<T>& products() const { return products_; }

  // From now on tiles are right even where embeddings are not finite: products see zeros instead,
  // and the logits of kept pairs of such rows are NaN. True if there are such rows.
  bool isolate_nonfinite() {
    nonfinite_ = query_.find_nonfinite();
    if (!is_self_) nonfinite_ = key_.find_nonfinite() || nonfinite_;
    return nonfinite_;
  }

  // Keeps the two sides of a Gram matrix's tiles in two buffers even where they are equal.
  void separate_sides() { separate_ = true; }

  // Calls visit(tile, workspace) for every tile, and skip(tile) for those that drop every pair.
  template <class Visit, class Skip>
  void run(Abort& abort, const Visit& visit, const Skip& skip) const {
    const auto workspace = [&] {
      const int64_t width = query().width();
      return Workspace<T>(block_m_, block_n_, query().copies() ? block_m_ * width : 0,
                          key().copies() ? block_n_ * width : 0, products_.buffer_size(block_n_));
    };
    const auto work = [&](const ScheduledTile& at, Workspace<T>& space) {
      const int64_t i0 = at.row * block_m_, j0 = at.col * block_n_;
      Tile<T> tile{at,
                   i0,
                   std::min(block_m_, query().rows() - i0),
                   j0,
                   std::min(block_n_, key().rows() - j0),
                   is_self_ && at.row == at.col,
                   nullptr,
                   nullptr,
                   nullptr,
                   nullptr};
      load(tile, space) ? visit(tile, space) : skip(tile);
    };
    const bool parallel = !products_.small();
    if (is_self_)
      for_each_tile(Tournament(row_blocks()), parallel, abort, workspace, work);
    else
      for_each_tile(LatinSquare(row_blocks(), col_blocks()), parallel, abort, workspace, work);
  }

  void drop(const Tile<T>& tile, T* values, T fill) const {
    filters_.drop(values, tile.i0, tile.m, tile.j0, tile.n, fill);
  }

  void drop_mirrored(const Tile<T>& tile, T* values, T fill) const {
    if (is_self_)
      filters_.drop_mirrored(values, tile.i0, tile.m, tile.j0, tile.n, fill);
    else
      drop(tile, values, fill);
  }

 private:
  TileLoop(const Embeddings<T>& query, const Embeddings<T>& key, T scale, const Options& options,
           bool is_self)
      : query_(query),
        key_(key),
        products_(query.rows(), key.rows(), query.width()),
        block_m_(block_size(query.rows(), query.width(), !products_.small())),
        block_n_(block_size(key.rows(), query.width(), !products_.small())),
        filters_(options, block_m_, block_n_),
        is_self_(is_self),
        symmetric_(filters_.symmetric()) {
    zero_scale_ = scale == 0;
    magnitude_ = zero_scale_ ? T(1) : std::abs(scale);
    sign_ = scale < 0 ? T(-1) : T(1);
  }

  static int64_t blocks(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

  // False if every pair is dropped.
  bool load(Tile<T>& tile, Workspace<T>& space) const {
    const bool one_sided = !is_self_ || symmetric_;
    const Dropped dropped = one_sided ? filters_.judge(tile.at.row, tile.at.col) : Dropped::some;
    if (dropped == Dropped::all) return false;
    const int64_t size = tile.m * tile.n;
    T* logits = space.logits.get();
    tile.query = query().block(tile.i0, tile.m, space.query.get());
    tile.key = tile.diagonal ? tile.query : key().block(tile.j0, tile.n, space.key.get());
    products_.similarities(tile.query, tile.key, logits, tile.m, tile.n, sign_,
                           space.transposed.get());
    if (zero_scale_)
      for (int64_t p = 0; p < size; ++p) logits[p] *= 0;
    if (nonfinite_) poison(tile, logits);
    tile.logits = tile.mirrored = logits;
    constexpr T lowest = -std::numeric_limits<T>::infinity();
    if (!one_sided || separate_) {
      tile.mirrored = space.mirrored(block_m_ * block_n_);
      std::copy(logits, logits + size, tile.mirrored);
      drop_mirrored(tile, tile.mirrored, lowest);
    }
    if (dropped == Dropped::some) drop(tile, logits, lowest);
    return true;
  }

  void poison(const Tile<T>& tile, T* logits) const {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = 0; i < tile.m; ++i)
      if (!query().finite(tile.i0 + i)) std::fill_n(logits + i * tile.n, tile.n, nan);
    for (int64_t j = 0; j < tile.n; ++j)
      if (!key().finite(tile.j0 + j))
        for (int64_t i = 0; i < tile.m; ++i) logits[i * tile.n + j] = nan;
  }

  Embeddings<T> query_, key_;
  Products<T> products_;
  int64_t block_m_, block_n_;
  Filters filters_;
  bool is_self_, symmetric_, zero_scale_, separate_ = false, nonfinite_ = false;
  T magnitude_, sign_;
};

}  // namespace cl::cpu
