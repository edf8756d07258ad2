// What turns a tile of similarities into logits: the scale, and which pairs are dropped.
#pragma once
#include "filters.h"
#include "tensors.h"

namespace cl::cpu {

// Rows [i0, i0 + m) and columns [j0, j0 + n).
struct TileRange {
  int64_t i0, m, j0, n;
};

template <class T>
class TileLogits {
 public:
  TileLogits(const Pairs& pairs, T scale, int64_t block_m, int64_t block_n)
      : filters_(pairs, block_m, block_n),
        scale_(scale),
        below_(optional_data<T>(pairs.below)),
        above_(optional_data<T>(pairs.above)) {}

  const Filters& filters() const { return filters_; }

  // Whether pair (j, i) of a Gram matrix has the logit of pair (i, j).
  bool symmetric() const { return filters_.symmetric() && !below_ && !above_; }

  // Of the products that finish() and finish_mirrored() take.
  T factor() const { return scaled_product() ? scale_ : T(1); }

  // Similarities, times factor(), to logits.
  void finish(T* s, const TileRange& at, Dropped dropped) const {
    if (!scaled_product())
      tile_kernels<T>().scale_within_rows(s, at.m, at.n, scale_, bounds(at.i0));
    if (dropped == Dropped::some) filters_.drop(s, at.i0, at.m, at.j0, at.n);
  }

  // The same as the columns of a Gram matrix see it: logits of pairs (j, i).
  void finish_mirrored(T* s, const TileRange& at) const {
    if (!scaled_product())
      tile_kernels<T>().scale_within_cols(s, at.m, at.n, scale_, bounds(at.j0));
    filters_.drop_mirrored(s, at.i0, at.m, at.j0, at.n);
  }

 private:
  // Bounds are on what is not scaled. A BLAS that multiplies by 0 forgets what is not finite.
  bool scaled_product() const { return !below_ && !above_ && scale_ != 0; }

  Bounds<T> bounds(int64_t first) const {
    return {below_ ? below_ + first : nullptr, above_ ? above_ + first : nullptr};
  }

  Filters filters_;
  T scale_;
  const T *below_, *above_;
};

}  // namespace cl::cpu
