#include "topk.h"

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "../checks.h"
#include "../statistics.h"
#include "embeddings.h"
#include "filters.h"
#include "parallel.h"
#include "products.h"
#include "tensors.h"

namespace cl::cpu {
namespace {

constexpr int64_t kRows = 48;       // multiplied at a time: their scores stay in the L1 cache
constexpr int64_t kMostRows = 512;  // of a block, for which a strip of keys is transposed once
constexpr int64_t kBlockBytes = 4 << 20;  // of the pairs kept for the rows of a block
constexpr int64_t kLeastStrips = 16;      // of a span of keys

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Binary search in sorted numbers, without branches: no processor could predict them.
bool contains(const int64_t* sorted, int64_t count, int64_t number) {
  while (count > 1) {
    const int64_t half = count / 2;
    sorted += sorted[half - 1] < number ? half : 0;
    count -= half;
  }
  return count == 1 && *sorted == number;
}

// The numbers of a range in an order that jumps about, so that the keys seen first are a fair
// sample even of a corpus that is sorted by score.
class Scattered {
 public:
  Scattered(int64_t begin, int64_t end)
      : begin_(begin), count_(end - begin), step_(std::max<int64_t>(1, count_ * 0.618)) {
    while (std::gcd(step_, count_) > 1) ++step_;
  }

  int64_t size() const { return count_; }
  int64_t operator[](int64_t n) const { return begin_ + n * step_ % count_; }

 private:
  int64_t begin_, count_, step_;
};

// A task is a block of queries against a span of keys. Every query keeps a reservoir, and the
// scores of a strip of keys are compared with its bound as soon as they are computed: only the few
// that pass are looked at one by one. What is kept does not depend on the order or on the spans.
template <class T>
class Scan {
 public:
  explicit Scan(const Search& search)
      : query_(search.query, search.query.scalar_type()),
        key_(search.key, search.key.scalar_type()),
        k_(search.k),
        query_factor_(optional_data<T>(search.query_factor)),
        key_factor_(optional_data<T>(search.key_factor)),
        below_(optional_data<T>(search.pairs.below)),
        above_(optional_data<T>(search.pairs.above)),
        exclude_offsets_(optional_data<int64_t>(search.exclude_offsets)),
        exclude_keys_(optional_data<int64_t>(search.exclude_keys)),
        parallel_(!Products<T>(query_.rows(), key_.rows(), query_.width()).small()),
        capacity_(reservoir_capacity(k_, key_.rows())),
        block_m_(block_rows()),
        row_blocks_(divide_up(query_.rows(), block_m_)),
        strips_(divide_up(key_.rows(), kStrip)),
        spans_(count_spans()),
        filters_(search.pairs, block_m_, kStrip) {}

  void run(T* values, int64_t* indices) const {
    // One span: its rows are written at once. Several: what each keeps is merged.
    const int64_t size = std::min(k_, divide_up(strips_, spans_) * kStrip);
    std::unique_ptr<Packed<T>[]> pairs;
    std::vector<int32_t> counts;
    if (spans_ > 1) {
      pairs.reset(new Packed<T>[query_.rows() * spans_ * size]);
      counts.resize(query_.rows() * spans_);
    }
    Abort abort;
    const auto workspace = [&] { return Workspace(*this); };
    const auto work = [&](const ScheduledTile& at, Workspace& space) {
      scan(at.row, at.col, abort, space);
      for (size_t r = 0; r < space.kept.size(); ++r) {
        const int64_t i = at.row * block_m_ + r;
        Reservoir<T>& kept = space.kept[r];
        const Packed<T>* best = space.pairs.get() + r * capacity_;
        if (spans_ == 1) {
          write_best<T>(best, kept.finish(), k_, values + i * k_, indices + i * k_);
        } else {
          const int64_t part = i * spans_ + at.col;
          kept.tighten();
          counts[part] = static_cast<int32_t>(kept.size());
          std::copy_n(best, kept.size(), pairs.get() + part * size);
        }
      }
    };
    for_each_tile(LatinSquare(row_blocks_, spans_), parallel_, abort, workspace, work);
    if (spans_ > 1)
      merge<T>({pairs.get(), counts.data(), query_.rows(), spans_, size}, k_, values, indices);
  }

 private:
  struct Workspace {
    explicit Workspace(const Scan& scan)
        : query(new T[scan.query_.copies() ? scan.block_m_ * scan.query_.width() : 0]),
          key(new T[kStrip * scan.key_.width()]),
          strip(new T[kStrip * scan.key_.width()]),
          products(new T[kRows * kStrip]),
          scores(new T[kRows * kStrip]),
          positions(new int32_t[kRows * kStrip]),
          pairs(new Packed<T>[scan.block_m_ * scan.capacity_]) {
      kept.reserve(scan.block_m_);
      wanted.reserve(scan.block_m_);
    }

    std::unique_ptr<T[]> query, key, strip, products, scores;
    std::unique_ptr<int32_t[]> positions;
    std::unique_ptr<Packed<T>[]> pairs;
    std::vector<Reservoir<T>> kept;
    std::vector<Wanted<T>> wanted;
    T key_factor[kStrip];
  };

  int64_t block_rows() const {
    const int64_t row_bytes =
        capacity_ * sizeof(Packed<T>) + (query_.copies() ? query_.width() * sizeof(T) : 0);
    const int64_t most = std::clamp<int64_t>(kBlockBytes / row_bytes, 1, kMostRows);
    return divide_up(query_.rows(), divide_up(query_.rows(), most));
  }

  // Tasks for threads to share evenly, but few where k is large: each span has its own k best.
  int64_t count_spans() const {
    const int64_t threads = parallel_ ? torch::stable::get_num_threads() : 1;
    if (threads == 1) return 1;
    const int64_t wanted = divide_up(4 * threads, row_blocks_);
    const int64_t most = std::max(threads, key_.rows() / (8 * k_));
    return std::clamp<int64_t>(wanted, 1, std::min(most, 1 + strips_ / kLeastStrips));
  }

  // Searches a span of keys for the best pairs of a block of queries: in part, if aborted.
  void scan(int64_t block, int64_t span, Abort& abort, Workspace& space) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    const int64_t i0 = block * block_m_, m = std::min(block_m_, query_.rows() - i0);
    const int64_t width = query_.width();
    begin_rows(i0, m, space);
    const T* query = query_.block(i0, m, space.query.get());
    const Scattered strips(strips_ * span / spans_, strips_ * (span + 1) / spans_);
    for (int64_t n = 0; n < strips.size() && !abort.requested(); ++n) {
      const Dropped dropped = filters_.judge(block, strips[n]);
      if (dropped == Dropped::all) continue;
      const int64_t j0 = strips[n] * kStrip;
      load_strip(j0, space);
      for (int64_t r = 0; r < m; r += kRows) {
        const int64_t rows = std::min(kRows, m - r);
        T* products = space.products.get();
        kernels.multiply(query + r * width, width, 1, space.strip.get(), products, rows, kStrip,
                         width, T(1));
        const int64_t found =
            kernels.find(products, rows, space.key_factor, j0, space.wanted.data() + r,
                         space.scores.get(), space.positions.get());
        for (int64_t f = 0; f < found; ++f) {
          const int64_t position = space.positions[f];
          consider(i0, r + position / kStrip, j0 + position % kStrip, space.scores[f],
                   dropped == Dropped::some, space);
        }
      }
    }
  }

  void begin_rows(int64_t i0, int64_t m, Workspace& space) const {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    space.kept.clear();
    space.wanted.clear();
    for (int64_t r = 0; r < m; ++r) {
      const int64_t i = i0 + r;
      T above = above_ ? above_[i] : -kInfinity<T>;
      const T below = below_ ? below_[i] : nan;
      if (below_ && std::isnan(below)) above = kInfinity<T>;  // nothing is below NaN
      // Key 0 is the best that scores as much as the bound: no other key may.
      space.kept.emplace_back(space.pairs.get() + r * capacity_, capacity_, k_, pack(above, 0));
      space.wanted.push_back({query_factor_ ? query_factor_[i] : T(1), above, below, 0});
    }
  }

  // Keys [j0, j0 + kStrip) transposed, and their factors. Where there is no key its factor, and so
  // its score, is NaN.
  void load_strip(int64_t j0, Workspace& space) const {
    const int64_t n = std::min<int64_t>(kStrip, key_.rows() - j0), width = key_.width();
    const T* keys = key_.block(j0, n, space.key.get());
    if (n < kStrip) {
      if (keys != space.key.get()) std::copy_n(keys, n * width, space.key.get());
      std::fill_n(space.key.get() + n * width, (kStrip - n) * width, T(0));
      keys = space.key.get();
    }
    tile_kernels<T>().transpose(keys, kStrip, width, space.strip.get());
    for (int64_t j = 0; j < n; ++j) space.key_factor[j] = key_factor_ ? key_factor_[j0 + j] : T(1);
    std::fill(space.key_factor + n, space.key_factor + kStrip, std::numeric_limits<T>::quiet_NaN());
  }

  void consider(int64_t i0, int64_t r, int64_t j, T score, bool filtered, Workspace& space) const {
    Reservoir<T>& kept = space.kept[r];
    const Packed<T> pair = pack(score, j);
    if (pair <= kept.bound()) return;
    if (filtered && !filters_.keeps(i0 + r, j)) return;
    if (excluded(i0 + r, j)) return;
    if (!kept.push(pair)) return;
    space.wanted[r].floor = score_of<T>(kept.bound());
    space.wanted[r].floor_index = index_of<T>(kept.bound());
  }

  bool excluded(int64_t i, int64_t j) const {
    if (!exclude_offsets_) return false;
    const int64_t begin = exclude_offsets_[i];
    return contains(exclude_keys_ + begin, exclude_offsets_[i + 1] - begin, j);
  }

  Embeddings<T> query_, key_;
  int64_t k_;
  const T *query_factor_, *key_factor_, *below_, *above_;
  const int64_t *exclude_offsets_, *exclude_keys_;
  bool parallel_;
  int64_t capacity_, block_m_, row_blocks_, strips_, spans_;
  Filters filters_;
};

}  // namespace

Found topk(const Search& search) {
  check_lists(search.exclude_offsets, search.exclude_keys);
  const int64_t M = search.query.size(0), k = search.k;
  Tensor values = empty(search.query, {M, k}), indices = empty_indices(search.query, {M, k});
  if (M == 0) return {values, indices};
  by_accumulator(search.query, [&]<class T>(T) {
    Scan<T>(search).run(mutable_data<T>(values), mutable_data<int64_t>(indices));
  });
  return {values, indices};
}

}  // namespace cl::cpu
