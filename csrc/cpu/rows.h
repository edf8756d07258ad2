// The precision boundary (cl_kernels/statistics/rows.py): embeddings become rows of the
// accumulation type, of unit length if wanted, and gradients go back the same way.
#pragma once
#include <cmath>

#include "embeddings.h"
#include "scratch.h"
#include "tensors.h"

namespace cl::cpu {

template <class F>
void for_each_row(int64_t rows, int64_t width, const F& f) {
  constexpr int64_t grain = 16384;  // numbers a thread takes at least
  for_each_range(rows, 1 + grain / std::max<int64_t>(width, 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

template <class T>
class Rows {
 public:
  // Inputs are stacked. One input that is as wanted already is not copied.
  Rows(std::initializer_list<const Tensor*> inputs, bool normalize)
      : width_((*inputs.begin())->size(1)) {
    for (const Tensor* input : inputs) count_ += input->size(0);
    const Tensor& first = **inputs.begin();
    if (inputs.size() == 1 && !normalize && first.scalar_type() == accumulator(first)) {
      rows_ = data<T>(first);
      return;
    }
    owned_ = Scratch(count_ * width_ * sizeof(T));
    rows_ = owned_.template as<T>();
    if (normalize) norm_.resize(count_);
    int64_t offset = 0;
    for (const Tensor* input : inputs) {
      const Embeddings<T> given(*input, input->scalar_type());
      for_each_row(given.rows(), width_, [&](int64_t i) { take(given, i, offset + i); });
      offset += given.rows();
    }
  }

  int64_t count() const { return count_; }
  int64_t width() const { return width_; }
  const T* row(int64_t i) const { return rows_ + i * width_; }

  Embeddings<T> embeddings(ScalarType compute_dtype) const {
    return Embeddings<T>(rows_, count_, width_, compute_dtype);
  }

  // Makes the gradient [count, width] with respect to the rows one with respect to the inputs.
  void unnormalize(T* grad) const {
    if (norm_.empty()) return;
    for_each_row(count_, width_, [&](int64_t i) { unnormalize(i, grad + i * width_); });
  }

  void unnormalize(int64_t i, T* grad) const {
    if (norm_.empty()) return;
    const TileKernels<T>& kernels = tile_kernels<T>();
    const T along = kernels.dot(row(i), grad, width_);
    kernels.combine(1 / norm_[i], grad, -along / norm_[i], row(i), width_);
  }

 private:
  void take(const Embeddings<T>& given, int64_t from, int64_t to) {
    T* row = owned_.template as<T>() + to * width_;
    const T* x = given.block(from, 1, row);
    T factor = 1;
    if (!norm_.empty()) {
      // As torch.nn.functional.normalize: a zero row stays zero instead of becoming NaN.
      const T norm = std::sqrt(tile_kernels<T>().dot(x, x, width_));
      factor = norm_[to] = norm < T(1e-12) ? T(1e-12) : norm;
    }
    tile_kernels<T>().divide(x, width_, factor, row);
  }

  int64_t width_, count_ = 0;
  const T* rows_;
  Scratch owned_;
  std::vector<T> norm_;
};

}  // namespace cl::cpu
