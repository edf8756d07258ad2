// Matrix products of torch's own BLAS on row-major blocks. Inside parallel_for they run on one
// thread, so a block's result does not depend on the thread count.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <type_traits>

#include "../stable.h"
#include "tile_kernels.h"

namespace cl::cpu {

// A borrowed rows x cols matrix with any strides.
class MatrixView {
 public:
  template <class T>
  MatrixView(const T* data, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
    const int64_t sizes[2] = {rows, cols}, strides[2] = {row_stride, col_stride};
    const int32_t dtype =
        std::is_same_v<T, double> ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob_v2(
        const_cast<T*>(data), 2, sizes, strides, 0, dtype, aoti_torch_device_type_cpu(), 0,
        &handle_, aoti_torch_layout_strided(), nullptr, 0));
  }
  ~MatrixView() { aoti_torch_delete_tensor_object(handle_); }
  MatrixView(const MatrixView&) = delete;
  MatrixView& operator=(const MatrixView&) = delete;

  AtenTensorHandle get() const { return handle_; }

 private:
  AtenTensorHandle handle_ = nullptr;
};

inline void multiply(const MatrixView& out, const MatrixView& a, const MatrixView& b, double beta,
                     double alpha) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, alpha));
}

// The three products of a tile: by plain loops where those are faster than BLAS, or where the
// whole problem is so small that a call of BLAS would cost more than it computes; else by BLAS.
// The choice hangs on the shape and the instruction set alone, not on the number of threads.
template <class T>
class Products {
 public:
  Products(int64_t rows, int64_t cols, int64_t width)
      : width_(width),
        small_(rows * cols * width <= kSmall),
        loops_(small_ || kernels_.fast_products) {}

  // Whether threads would cost more than they compute.
  bool small() const { return small_; }

  int64_t buffer_size(int64_t n) const { return loops_ ? n * width_ : 0; }

  // s = factor * a b^T for a [m, width] and b [n, width].
  void similarities(const T* a, const T* b, T* s, int64_t m, int64_t n, T factor, T* buffer) const {
    if (!loops_) {
      for (int64_t d = 0; d < width_; d += kDepth) {
        const int64_t depth = std::min(kDepth, width_ - d);
        multiply({s, m, n, n, 1}, {a + d, m, depth, width_, 1}, {b + d, depth, n, 1, width_},
                 d == 0 ? 0. : 1., factor);
      }
      return;
    }
    kernels_.transpose(b, n, width_, buffer);
    kernels_.multiply(a, width_, 1, buffer, s, m, n, width_, factor);
  }

  // total += w b, for w [m, n] and b [n, width].
  void add_weighted(const T* w, const T* b, T* total, int64_t m, int64_t n) const {
    if (loops_)
      kernels_.add_product(w, n, 1, b, total, m, width_, n);
    else
      multiply({total, m, width_, width_, 1}, {w, m, n, n, 1}, {b, n, width_, width_, 1}, 1., 1.);
  }

  // total += w^T a, for w [m, n] and a [m, width].
  void add_weighted_transposed(const T* w, const T* a, T* total, int64_t m, int64_t n) const {
    if (loops_)
      kernels_.add_product(w, 1, n, a, total, n, width_, m);
    else
      multiply({total, n, width_, width_, 1}, {w, n, m, 1, n}, {a, m, width_, width_, 1}, 1., 1.);
  }

 private:
  static constexpr int64_t kSmall = 1 << 19;
  static constexpr int64_t kDepth = 512;  // of one BLAS product: some BLAS keep one running sum

  const TileKernels<T>& kernels_ = tile_kernels<T>();
  int64_t width_;
  bool small_, loops_;
};

}  // namespace cl::cpu
