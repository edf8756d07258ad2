// Rows of an embedding matrix, a block at a time, as the tile products take them.
#pragma once
#include <algorithm>
#include <atomic>

#include "../stable.h"
#include "parallel.h"
#include "tile_kernels.h"

namespace cl::cpu {

template <class T>
class Embeddings {
 public:
  Embeddings(const Tensor& x, ScalarType compute_dtype)
      : rows_(x.size(0)),
        width_(x.size(1)),
        data_(static_cast<const char*>(x.const_data_ptr())),
        dtype_(x.scalar_type()),
        compute_dtype_(compute_dtype) {}

  // Contiguous rows in memory that outlives this.
  Embeddings(const T* rows, int64_t count, int64_t width, ScalarType compute_dtype)
      : rows_(count),
        width_(width),
        data_(reinterpret_cast<const char*>(rows)),
        dtype_(sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float),
        compute_dtype_(compute_dtype) {}

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }

  // Whether block() writes to its buffer.
  bool copies() const { return !is_accumulator(dtype_) || rounds() || has_nonfinite_; }

  // Rows [begin, begin + count) in T, rounded to the compute dtype: in place if they already are,
  // else in the buffer. After find_nonfinite, a row that is not finite reads as zero.
  const T* block(int64_t begin, int64_t count, T* buffer) const {
    const T* rows = rounded(begin, count, buffer);
    if (!has_nonfinite_) return rows;
    if (rows != buffer) std::copy(rows, rows + count * width_, buffer);
    for (int64_t i = 0; i < count; ++i)
      if (!finite(begin + i)) std::fill_n(buffer + i * width_, width_, T(0));
    return buffer;
  }

  bool finite(int64_t row) const { return !has_nonfinite_ || finite_[row]; }

  // Looks for rows with a NaN or an infinity; true if there are any.
  bool find_nonfinite() {
    constexpr int64_t grain = 256;
    std::vector<char> finite(rows_);
    std::atomic<bool> found{false};
    for_each_range(rows_, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer(copies() ? width_ : 0);
      for (int64_t i = begin; i < end; ++i) {
        finite[i] = tile_kernels<T>().all_finite(rounded(i, 1, buffer.data()), width_);
        if (!finite[i]) found = true;
      }
    });
    if (found) {
      finite_ = std::move(finite);
      has_nonfinite_ = true;
    }
    return found;
  }

 private:
  static bool is_accumulator(ScalarType dtype) {
    return dtype == (sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float);
  }

  bool rounds() const {
    if (compute_dtype_ == dtype_ || compute_dtype_ == ScalarType::Double) return false;
    return !(compute_dtype_ == ScalarType::Float && dtype_ != ScalarType::Double);
  }

  const T* rounded(int64_t begin, int64_t count, T* buffer) const {
    const TileKernels<T>& kernels = tile_kernels<T>();
    const int64_t offset = begin * width_, size = count * width_;
    const T* rows = buffer;
    if (dtype_ == ScalarType::BFloat16)
      kernels.widen_bfloat16(reinterpret_cast<const uint16_t*>(data_) + offset, size, buffer);
    else if (dtype_ == ScalarType::Half)
      kernels.widen_float16(reinterpret_cast<const uint16_t*>(data_) + offset, size, buffer);
    else
      rows = reinterpret_cast<const T*>(data_) + offset;
    if (!rounds()) return rows;
    if (compute_dtype_ == ScalarType::BFloat16)
      kernels.round_bfloat16(rows, size, buffer);
    else if (compute_dtype_ == ScalarType::Half)
      kernels.round_float16(rows, size, buffer);
    else
      std::transform(rows, rows + size, buffer, [](T x) { return static_cast<float>(x); });
    return buffer;
  }

  int64_t rows_, width_;
  const char* data_;
  ScalarType dtype_, compute_dtype_;
  bool has_nonfinite_ = false;
  std::vector<char> finite_;
};

}  // namespace cl::cpu
