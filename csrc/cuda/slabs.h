// The one loop over slabs of similarities: the pairs of some queries with all keys, or with a chunk
// of them where there are very many.
//
// Products are torch's own float32 (float64) ones, of embeddings rounded to the compute dtype:
// torch.backends.cuda.matmul.fp32_precision holds for them too. Only topk multiplies half types as
// they are.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <algorithm>
#include <array>
#include <optional>

#include "kernels.h"
#include "tensors.h"

namespace cl::cuda {

constexpr int64_t kSlabBytes = int64_t{256} << 20;
constexpr int64_t kMostKeys = 131072;  // of a slab

struct Range {
  int64_t begin, count;
};

inline std::vector<Range> split(int64_t count, int64_t part) {
  std::vector<Range> result;
  for (int64_t begin = 0; begin < count; begin += part)
    result.push_back({begin, std::min(part, count - begin)});
  return result;
}

// A borrowed matrix on x's device, with any strides.
template <class T>
Tensor borrow(const Tensor& x, const T* first, std::array<int64_t, 2> sizes,
              std::array<int64_t, 2> strides) {
  return torch::stable::from_blob(const_cast<T*>(first), sizes, strides, x.device(),
                                  accumulator(x));
}

// out = beta * out + a b, by cuBLAS. With beta = 0 what out held does not count.
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b, double beta) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, 1.));
}

// Embeddings in T, rounded to the compute dtype: in place if they already are.
template <class T>
class Embeddings {
 public:
  // With isolate, rows that are not finite read as zero and are flagged.
  Embeddings(const Tensor& x, ScalarType compute_dtype, bool isolate) : tensor_(x) {
    const bool rounds = compute_dtype != ScalarType::Double && compute_dtype != accumulator(x);
    if (!isolate && !rounds && x.scalar_type() == accumulator(x)) return;
    if (isolate) flags_ = torch::stable::new_empty(x, {rows()}, ScalarType::Bool);
    tensor_ = empty(x, {rows(), width()});
    round_rows<T>(x.const_data_ptr(), x.scalar_type(), compute_dtype, rows(), width(),
                  mutable_data<T>(tensor_), flags_ ? mutable_data<bool>(*flags_) : nullptr);
  }

  int64_t rows() const { return tensor_.size(0); }
  int64_t width() const { return tensor_.size(1); }
  const Tensor& tensor() const { return tensor_; }
  const T* first() const { return data<T>(tensor_); }
  const bool* nonfinite() const { return flags_ ? data<bool>(*flags_) : nullptr; }

  Tensor part(Range r) const {
    return borrow(tensor_, first() + r.begin * width(), {r.count, width()}, {width(), 1});
  }
  Tensor part_transposed(Range r) const {
    return borrow(tensor_, first() + r.begin * width(), {width(), r.count}, {1, width()});
  }

 private:
  Tensor tensor_;
  std::optional<Tensor> flags_;
};

template <class T>
class Slabs {
 public:
  // With isolate, similarities are right even where embeddings are not finite, and products see
  // zeros instead of those.
  Slabs(const Logits& logits, bool isolate)
      : query_(logits.query, logits.call.compute_dtype, isolate) {
    if (logits.key) key_.emplace(*logits.key, logits.call.compute_dtype, isolate);
    const int64_t keys = key().rows();
    const int64_t width = std::clamp<int64_t>(keys, 1, kMostKeys);
    const int64_t height = kSlabBytes / static_cast<int64_t>(sizeof(T)) / width / 128 * 128;
    row_ranges_ = split(query_.rows(), height);
    key_ranges_ = split(keys, width);
    buffer_ = scratch({std::min(height, query_.rows()) * width});
    problem_ = {data<T>(logits.scale), query_.nonfinite(), key().nonfinite(),
                KeptPairs<T>(logits.call.pairs)};
  }

  const Embeddings<T>& query() const { return query_; }
  const Embeddings<T>& key() const { return key_ ? *key_ : query_; }
  bool is_self() const { return !key_; }
  const Problem<T>& problem() const { return problem_; }
  const std::vector<Range>& row_ranges() const { return row_ranges_; }
  const std::vector<Range>& key_ranges() const { return key_ranges_; }

  // Uninitialised memory beside the embeddings.
  Tensor scratch(std::vector<int64_t> size) const { return empty(query_.tensor(), size); }

  // Overwrites the slab before it.
  Slab<T> dots(Range rows, Range keys) const {
    const Slab<T> slab{mutable_data<T>(buffer_), rows.begin, rows.count, keys.begin, keys.count};
    multiply(matrix(slab), query_.part(rows), key().part_transposed(keys), 0.);
    return slab;
  }

  // total[rows] += W key, for a slab of weights W and total [M, width].
  void add_weighted(const Slab<T>& slab, T* total) const {
    const int64_t width = query_.width();
    multiply(borrow(buffer_, total + slab.i0 * width, {slab.m, width}, {width, 1}), matrix(slab),
             key().part({slab.j0, slab.n}), 1.);
  }

  // total[keys] += W^T query, for a slab of weights W and total [N, width].
  void add_weighted_transposed(const Slab<T>& slab, T* total) const {
    const int64_t width = query_.width();
    multiply(borrow(buffer_, total + slab.j0 * width, {slab.n, width}, {width, 1}),
             borrow(buffer_, slab.dots, {slab.n, slab.m}, {1, slab.n}),
             query_.part({slab.i0, slab.m}), 1.);
  }

 private:
  Tensor matrix(const Slab<T>& slab) const {
    return borrow(buffer_, slab.dots, {slab.m, slab.n}, {slab.n, 1});
  }

  Embeddings<T> query_;
  std::optional<Embeddings<T>> key_;  // absent for a Gram matrix
  std::vector<Range> row_ranges_, key_ranges_;
  Tensor buffer_;
  Problem<T> problem_;
};

}  // namespace cl::cuda
