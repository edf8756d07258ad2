// Top-K of whole tensors: products by cuBLAS a slab at a time, and the selection of survivors. The
// same functions as in csrc/cpu/topk.h, but Python alone checks what is in lists of keys to leave
// out.
#pragma once
#include "../search.h"

namespace cl::cuda {

Found topk(const Search& search);

Found select_topk(const Tensor& packed, const Tensor& counts, int64_t k);

}  // namespace cl::cuda
