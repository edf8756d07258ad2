// The id filters of a call, applied to a tile.
#pragma once
#include <algorithm>
#include <utility>

#include "../pairs.h"
#include "tile_kernels.h"

namespace cl::cpu {

enum class Dropped { none, some, all };

class Filters {
 public:
  // Block sizes let whole tiles be judged by the ranges of their ids.
  Filters(const Pairs& pairs, int64_t block_m, int64_t block_n) {
    for (size_t f = 0; f < pairs.keep_same.size(); ++f) {
      const Tensor &query = pairs.query_ids[f], &key = pairs.key_ids[f];
      Filter filter{query.const_data_ptr<int64_t>(),
                    key.const_data_ptr<int64_t>(),
                    pairs.keep_same[f],
                    {},
                    {}};
      filter.query_ranges = ranges(filter.query, query.size(0), block_m);
      filter.key_ranges = ranges(filter.key, key.size(0), block_n);
      filters_.push_back(std::move(filter));
    }
  }

  // Whether keeping (i, j) and keeping (j, i) are the same thing, as far as pointers tell.
  bool symmetric() const {
    return std::all_of(filters_.begin(), filters_.end(),
                       [](const Filter& f) { return f.query == f.key; });
  }

  Dropped judge(int64_t block_i, int64_t block_j) const {
    Dropped verdict = Dropped::none;
    for (const Filter& f : filters_) {
      const Range q = f.query_ranges[block_i], k = f.key_ranges[block_j];
      const bool all_differ = q.second < k.first || k.second < q.first;
      const bool all_same = q.first == q.second && k.first == k.second && q.first == k.first;
      if (f.keep_same ? all_differ : all_same) return Dropped::all;
      if (!(f.keep_same ? all_same : all_differ)) verdict = Dropped::some;
    }
    return verdict;
  }

  bool keeps(int64_t i, int64_t j) const {
    return std::all_of(filters_.begin(), filters_.end(),
                       [&](const Filter& f) { return (f.query[i] == f.key[j]) == f.keep_same; });
  }

  // Makes -inf of the dropped pairs of the tile at (i0, j0).
  template <class T>
  void drop(T* z, int64_t i0, int64_t m, int64_t j0, int64_t n) const {
    for (const Filter& f : filters_)
      tile_kernels<T>().drop(z, m, n, f.query + i0, f.key + j0, f.keep_same);
  }

  // The same for a Gram matrix's tile read as its columns see it: pair (j, i) for (i, j).
  template <class T>
  void drop_mirrored(T* z, int64_t i0, int64_t m, int64_t j0, int64_t n) const {
    for (const Filter& f : filters_)
      tile_kernels<T>().drop(z, m, n, f.key + i0, f.query + j0, f.keep_same);
  }

 private:
  using Range = std::pair<int64_t, int64_t>;

  struct Filter {
    const int64_t* query;
    const int64_t* key;
    bool keep_same;
    std::vector<Range> query_ranges, key_ranges;
  };

  static std::vector<Range> ranges(const int64_t* ids, int64_t count, int64_t block) {
    std::vector<Range> result;
    for (int64_t begin = 0; begin < count; begin += block) {
      const auto [low, high] =
          std::minmax_element(ids + begin, ids + std::min(begin + block, count));
      result.emplace_back(*low, *high);
    }
    return result;
  }

  std::vector<Filter> filters_;
};

}  // namespace cl::cpu
