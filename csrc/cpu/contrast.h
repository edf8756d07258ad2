// Normalisation, a statistic, the losses softplus(negatives - positive) and all gradients in one
// call: the composition of cl_kernels/losses/contrast.py without a Python step in between, which
// at small batches would cost more than the arithmetic.
#pragma once
#include <tuple>

#include "../stable.h"

namespace cl::cpu {

// Losses, then the gradients of their mean or sum with respect to the scale and the embeddings:
// those of both views stacked, those of query and key apart.
using ViewsContrast = std::tuple<Tensor, Tensor, Tensor>;
using PairsContrast = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Rows of both views [2B]: each row's other view against the rows that are kept.
// needs: whether the gradients of the scale, view_0 and view_1 are wanted.
template <class T>
ViewsContrast contrast_views(const Tensor& view_0, const Tensor& view_1, const Tensor& scale,
                             const Options& options, bool normalize, bool mean,
                             const std::vector<bool>& needs);

// Queries [B]: key i against the keys that are kept; symmetric: the mean of both directions.
template <class T>
PairsContrast contrast_pairs(const Tensor& query, const Tensor& key, const Tensor& scale,
                             const Options& options, bool normalize, bool mean,
                             const std::vector<bool>& needs, bool symmetric);

}  // namespace cl::cpu
