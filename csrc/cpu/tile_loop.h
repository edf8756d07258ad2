// The one tile loop: loads, ragged edges, logits, turns. Statistics (visits.h) say what becomes of
// a tile.
#pragma once
#include <cmath>

#include "embeddings.h"
#include "parallel.h"
#include "products.h"
#include "scratch.h"
#include "tile_logits.h"

namespace cl::cpu {

constexpr int64_t kMostRows = 256;      // of a tile, and columns
constexpr int64_t kMostKept = 1 << 18;  // logits between two visits: those of four tiles

// Rows of a tile: a function of the shape alone, so that results do not depend on the machine.
// A tile fits the second-level cache. A problem that threads share has a few tiles for each, of 64
// rows as soon as that makes four: narrower ones take a fifth longer. Very wide embeddings make
// small tiles, whose rows fit in memory and whose end a signal can wait for.
inline int64_t block_size(int64_t rows, int64_t width, bool shared) {
  constexpr int64_t most_numbers = kMostRows << 15;
  const int64_t least = shared && rows < 4 * 64 ? 32 : 64;
  const int64_t eighth = (rows / 8 + least - 1) / least * least;
  const int64_t narrow = most_numbers / std::max<int64_t>(width, 1) / least * least;
  return std::clamp<int64_t>(std::min(eighth, narrow), least, kMostRows);
}

template <class T>
struct Tile : TileRange {
  bool diagonal = false;     // of a Gram matrix
  T* logits = nullptr;       // [m, n]
  T* mirrored = nullptr;     // the same as the columns of a Gram matrix see it; often == logits
  const T* query = nullptr;  // [m, width]
  const T* key = nullptr;    // [n, width]
};

// To which blocks of results a visit of the tiles adds.
struct AddsTo {
  bool rows, cols;
};

// When a tile's turn comes at its two blocks.
class TileTurns {
 public:
  TileTurns(const ScheduledTile& at, Turns* rows, Turns* cols)
      : at_(at), rows_(rows), cols_(cols) {}

  bool adds_cols() const { return cols_; }

  template <class Add>
  void rows(const Add& add) const {
    if (rows_) rows_->in_turn(at_.row, at_.row_turn, add);
  }

  template <class Add>
  void cols(const Add& add) const {
    if (cols_) cols_->in_turn(at_.col, at_.col_turn, add);
  }

  void pass() const {
    rows([] {});
    cols([] {});
  }

 private:
  const ScheduledTile& at_;
  Turns *rows_, *cols_;  // null: nobody adds there
};

template <class T>
class TileLoop {
 public:
  // All pairs of query and key.
  TileLoop(const Embeddings<T>& query, const Embeddings<T>& key, T scale, const Pairs& pairs)
      : TileLoop(query, key, scale, pairs, false) {}

  // The pairs of x with itself, each tile and its mirror image once.
  TileLoop(const Embeddings<T>& x, T scale, const Pairs& pairs)
      : TileLoop(x, x, scale, pairs, true) {}

  // With isolate, see isolate_nonfinite().
  TileLoop(const Logits& logits, bool isolate)
      : TileLoop(Embeddings<T>(logits.query, logits.call.compute_dtype),
                 Embeddings<T>(logits.keys(), logits.call.compute_dtype), *data<T>(logits.scale),
                 logits.call.pairs, logits.is_self()) {
    if (isolate) isolate_nonfinite();
  }

  const Embeddings<T>& query() const { return query_; }
  const Embeddings<T>& key() const { return is_self_ ? query_ : key_; }
  bool is_self() const { return is_self_; }
  T scale() const { return scale_; }
  const Products<T>& products() const { return products_; }

  // From now on tiles are right even where embeddings are not finite: products see zeros instead,
  // and the logits of such rows' pairs are NaN.
  void isolate_nonfinite() {
    nonfinite_ = query_.find_nonfinite();
    if (!is_self_) nonfinite_ = key_.find_nonfinite() || nonfinite_;
    if (nonfinite_) is_kept_.assign(is_kept_.size(), false);
  }

  // For two visits: the second one takes the logits that the first one made, where all of them
  // together are few. Only the second may overwrite them.
  void keep_logits() {
    const int64_t tiles = row_blocks() * col_blocks(), size = tiles * kept_size();
    if (size > kMostKept) return;
    kept_ = Scratch(size * sizeof(T));
    is_kept_.resize(tiles);
  }

  // Calls visit(tile, turns) for every tile but those that drop every pair. A visit takes its turn
  // at both blocks, its rows' first.
  template <class Visit>
  void run(AddsTo adds_to, const Visit& visit) const {
    Abort abort;
    Turns row_turns(row_blocks(), abort), col_turns(col_blocks(), abort);
    const auto workspace = [&] { return Workspace(*this); };
    const auto work = [&](const ScheduledTile& at, Workspace& space) {
      Tile<T> tile = tile_at(at);
      Turns* const cols = is_self_ ? &row_turns : &col_turns;
      const TileTurns turns(at, adds_to.rows ? &row_turns : nullptr,
                            adds_to.cols && !tile.diagonal ? cols : nullptr);
      load(at, tile, space) ? visit(tile, turns) : turns.pass();
    };
    const bool parallel = !products_.small();
    if (is_self_)
      for_each_tile(Tournament(row_blocks()), parallel, abort, workspace, work);
    else
      for_each_tile(LatinSquare(row_blocks(), col_blocks()), parallel, abort, workspace, work);
  }

 private:
  // Uninitialised: what a tile needs is written before it is read.
  class Workspace {
   public:
    explicit Workspace(const TileLoop& loop) {
      const int64_t width = loop.query().width(), tile = loop.block_m_ * loop.block_n_;
      const std::pair<T**, int64_t> parts[] = {
          {&logits, tile},
          {&mirrored, loop.symmetric_ ? 0 : tile},
          {&query, loop.query().copies() ? loop.block_m_ * width : 0},
          {&key, loop.key().copies() ? loop.block_n_ * width : 0},
          {&transposed, loop.products_.buffer_size(loop.block_n_)},
          {&options, loop.logits_.buffer_size()},
      };
      constexpr int64_t line = 64 / sizeof(T);
      int64_t total = 0;
      for (const auto& [part, size] : parts) total += (size + line - 1) / line * line;
      memory_ = Scratch(total * sizeof(T));
      T* next = memory_.as<T>();
      for (const auto& [part, size] : parts) {
        *part = next;
        next += (size + line - 1) / line * line;
      }
    }

    T *logits, *mirrored, *query, *key, *transposed, *options;

   private:
    Scratch memory_;
  };

  TileLoop(const Embeddings<T>& query, const Embeddings<T>& key, T scale, const Pairs& pairs,
           bool is_self)
      : query_(query),
        key_(key),
        scale_(scale),
        products_(query.rows(), key.rows(), query.width()),
        block_m_(block_size(query.rows(), query.width(), !products_.small())),
        block_n_(block_size(key.rows(), query.width(), !products_.small())),
        logits_(pairs, scale, block_m_, block_n_),
        is_self_(is_self),
        symmetric_(!is_self || logits_.symmetric()) {}

  static int64_t blocks(int64_t rows, int64_t block) { return (rows + block - 1) / block; }
  int64_t row_blocks() const { return blocks(query().rows(), block_m_); }
  int64_t col_blocks() const { return blocks(key().rows(), block_n_); }

  Tile<T> tile_at(const ScheduledTile& at) const {
    const int64_t i0 = at.row * block_m_, j0 = at.col * block_n_;
    const int64_t m = std::min(block_m_, query().rows() - i0);
    const int64_t n = std::min(block_n_, key().rows() - j0);
    return {{i0, m, j0, n}, is_self_ && at.row == at.col};
  }

  // False if every pair is dropped.
  bool load(const ScheduledTile& at, Tile<T>& tile, Workspace& space) const {
    const Dropped dropped = symmetric_ ? logits_.filters().judge(at.row, at.col) : Dropped::some;
    if (dropped == Dropped::all) return false;
    tile.query = query().block(tile.i0, tile.m, space.query);
    tile.key = tile.diagonal ? tile.query : key().block(tile.j0, tile.n, space.key);
    tile.logits = tile.mirrored = space.logits;
    if (!symmetric_) tile.mirrored = space.mirrored;
    if (!is_kept_.empty() && take_kept(at, tile)) return true;
    products_.similarities(tile.query, tile.key, tile.logits, tile.m, tile.n, logits_.factor(),
                           space.transposed);
    if (nonfinite_) poison(tile);
    if (!symmetric_) {
      std::copy_n(tile.logits, tile.m * tile.n, tile.mirrored);
      logits_.finish_mirrored(tile.mirrored, tile, space.options);
    }
    logits_.finish(tile.logits, tile, dropped, space.options, !symmetric_);
    return true;
  }

  int64_t kept_size() const { return block_m_ * block_n_ * (symmetric_ ? 1 : 2); }

  // Whether the tile's logits are there already; if not, they are to be made in their place.
  bool take_kept(const ScheduledTile& at, Tile<T>& tile) const {
    const int64_t index = at.row * col_blocks() + at.col;
    T* const place = kept_.template as<T>() + index * kept_size();
    tile.logits = tile.mirrored = place;
    if (!symmetric_) tile.mirrored = place + block_m_ * block_n_;
    return std::exchange(is_kept_[index], !is_kept_[index]);
  }

  void poison(const Tile<T>& tile) const {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = 0; i < tile.m; ++i)
      if (!query().finite(tile.i0 + i)) std::fill_n(tile.logits + i * tile.n, tile.n, nan);
    for (int64_t j = 0; j < tile.n; ++j)
      if (!key().finite(tile.j0 + j))
        for (int64_t i = 0; i < tile.m; ++i) tile.logits[i * tile.n + j] = nan;
  }

  Embeddings<T> query_, key_;
  T scale_;
  Products<T> products_;
  int64_t block_m_, block_n_;
  TileLogits<T> logits_;
  bool is_self_, symmetric_, nonfinite_ = false;
  Scratch kept_;
  mutable std::vector<char> is_kept_;  // of each tile; empty if none is to be kept
};

}  // namespace cl::cpu
