// Which pairs are kept, as cl::Pairs says: for kernels, and made of a call's on the host.
#pragma once
#include "../host_device.h"
#include "../pairs.h"
#include "../tensors.h"

namespace cl::cuda {

template <class T>
struct KeptPairs {
  int filters = 0;
  const int64_t* query_ids[kMostFilters] = {};
  const int64_t* key_ids[kMostFilters] = {};
  bool keep_same[kMostFilters] = {};
  const T *below = nullptr, *above = nullptr;  // of each query, or null

  KeptPairs() = default;

  explicit KeptPairs(const Pairs& pairs)
      : below(optional_data<T>(pairs.below)), above(optional_data<T>(pairs.above)) {
    for (const bool same : pairs.keep_same) {
      const int f = filters++;
      query_ids[f] = data<int64_t>(pairs.query_ids[f]);
      key_ids[f] = data<int64_t>(pairs.key_ids[f]);
      keep_same[f] = same;
    }
  }

  // Whether pairs of this similarity are.
  CL_HOST_DEVICE bool keeps(int64_t query, int64_t key, T similarity) const {
    if (below && !(similarity < below[query])) return false;
    if (above && !(similarity > above[query])) return false;
    for (int f = 0; f < static_cast<int>(kMostFilters); ++f)
      if (f < filters && (query_ids[f][query] == key_ids[f][key]) != keep_same[f]) return false;
    return true;
  }
};

}  // namespace cl::cuda
