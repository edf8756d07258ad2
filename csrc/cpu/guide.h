// Another model's embeddings, whose similarities under a ceiling say which pairs count.
#pragma once
#include "embeddings.h"
#include "products.h"
#include "tile_range.h"

namespace cl::cpu {

template <class T>
class Guide {
 public:
  Guide(const Pairs& pairs, int64_t block_m, int64_t block_n) {
    if (!pairs.ceiling) return;
    query_ = data<T>(*pairs.query_guide);
    key_ = data<T>(*pairs.key_guide);
    ceiling_ = data<T>(*pairs.ceiling);
    width_ = pairs.query_guide->size(1);
    products_.emplace(pairs.query_guide->size(0), pairs.key_guide->size(0), width_);
    tile_size_ = block_m * block_n;
    transposed_size_ = products_->buffer_size(block_n);
  }

  bool given() const { return ceiling_; }
  int64_t buffer_size() const { return tile_size_ + transposed_size_; }

  // after_mirrored: drop_mirrored was just called with this tile and buffer.
  void drop(T* z, const TileRange& at, T* buffer, bool after_mirrored) const {
    if (!after_mirrored || query_ != key_) multiply(query_, key_, at, buffer);
    tile_kernels<T>().drop_above_rows(z, at.m, at.n, buffer, ceiling_ + at.i0);
  }

  // The same as the columns of a Gram matrix see it: of pairs (j, i).
  void drop_mirrored(T* z, const TileRange& at, T* buffer) const {
    multiply(key_, query_, at, buffer);
    tile_kernels<T>().drop_above_cols(z, at.m, at.n, buffer, ceiling_ + at.j0);
  }

 private:
  void multiply(const T* rows, const T* cols, const TileRange& at, T* buffer) const {
    products_->similarities(rows + at.i0 * width_, cols + at.j0 * width_, buffer, at.m, at.n, T(1),
                            buffer + tile_size_);
  }

  const T *query_ = nullptr, *key_ = nullptr, *ceiling_ = nullptr;
  int64_t width_ = 0, tile_size_ = 0, transposed_size_ = 0;
  std::optional<Products<T>> products_;
};

}  // namespace cl::cpu
