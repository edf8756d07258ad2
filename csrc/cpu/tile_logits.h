// What turns a tile of similarities into logits: the scale, biases, and which pairs are dropped.
#pragma once
#include "filters.h"
#include "guide.h"
#include "tensors.h"

namespace cl::cpu {

template <class T>
class TileLogits {
 public:
  TileLogits(const Pairs& pairs, T scale, int64_t block_m, int64_t block_n)
      : filters_(pairs, block_m, block_n),
        guide_(pairs, block_m, block_n),
        scale_(scale),
        below_(optional_data<T>(pairs.below)),
        above_(optional_data<T>(pairs.above)),
        query_bias_(optional_data<T>(pairs.query_bias)),
        key_bias_(optional_data<T>(pairs.key_bias)) {}

  const Filters& filters() const { return filters_; }

  // Whether pair (j, i) of a Gram matrix has the logit of pair (i, j).
  bool symmetric() const {
    return filters_.symmetric() && !guide_.given() && !below_ && !above_ && !query_bias_ &&
           !key_bias_;
  }

  // Of the products that finish() and finish_mirrored() take.
  T factor() const { return scaled_product() ? scale_ : T(1); }

  // Numbers that these need besides the tile.
  int64_t buffer_size() const { return guide_.buffer_size(); }

  // Similarities, times factor(), to logits; after_mirrored: finish_mirrored was just called.
  void finish(T* s, const TileRange& at, Dropped dropped, T* buffer, bool after_mirrored) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    if (!scaled_product()) kernels.scale_within_rows(s, at.m, at.n, scale_, bounds(at.i0));
    if (query_bias_ || key_bias_)
      kernels.add_biases(s, at.m, at.n, from(query_bias_, at.i0), from(key_bias_, at.j0));
    if (dropped == Dropped::some) filters_.drop(s, at.i0, at.m, at.j0, at.n);
    if (guide_.given()) guide_.drop(s, at, buffer, after_mirrored);
  }

  // The same as the columns of a Gram matrix see it: logits of pairs (j, i).
  void finish_mirrored(T* s, const TileRange& at, T* buffer) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    if (!scaled_product()) kernels.scale_within_cols(s, at.m, at.n, scale_, bounds(at.j0));
    if (query_bias_ || key_bias_)
      kernels.add_biases(s, at.m, at.n, from(key_bias_, at.i0), from(query_bias_, at.j0));
    filters_.drop_mirrored(s, at.i0, at.m, at.j0, at.n);
    if (guide_.given()) guide_.drop_mirrored(s, at, buffer);
  }

 private:
  // Bounds are on what is not scaled. A BLAS that multiplies by 0 forgets what is not finite.
  bool scaled_product() const { return !below_ && !above_ && scale_ != 0; }

  static const T* from(const T* vector, int64_t first) { return vector ? vector + first : nullptr; }

  Bounds<T> bounds(int64_t first) const { return {from(below_, first), from(above_, first)}; }

  Filters filters_;
  Guide<T> guide_;
  T scale_;
  const T *below_, *above_, *query_bias_, *key_bias_;
};

}  // namespace cl::cpu
