#include <memory>

#include "tensors.h"
#include "topk.h"

namespace cl::cpu {

template <class T>
void merge(const Parts<T>& from, int64_t k, T* values, int64_t* indices) {
  constexpr int64_t grain = 1 << 14;  // pairs a thread takes at least
  const int64_t most = from.parts * from.size;
  const int64_t capacity = reservoir_capacity(k, most);
  const int64_t rows = grain / std::max<int64_t>(most, 1) + 1;
  for_each_range(from.rows, rows, [&](int64_t begin, int64_t end) {
    std::unique_ptr<Packed<T>[]> storage(new Packed<T>[capacity]);
    for (int64_t i = begin; i < end; ++i) {
      Reservoir<T> best(storage.get(), capacity, k, kEmpty<T>);
      for (int64_t p = i * from.parts; p < (i + 1) * from.parts; ++p) {
        const Packed<T>* pairs = from.pairs + p * from.size;
        const int64_t count = std::clamp<int64_t>(from.counts[p], 0, from.size);
        for (int64_t c = 0; c < count; ++c) best.push(pairs[c]);
      }
      write_best<T>(storage.get(), best.finish(), k, values + i * k, indices + i * k);
    }
  });
}

Found select_topk(const Tensor& packed, const Tensor& counts, int64_t k) {
  const int64_t rows = packed.size(0);
  Tensor values = empty_of(aoti_torch_dtype_float32(), {rows, k});
  Tensor indices = empty_indices(packed, {rows, k});
  merge<float>({data<int64_t>(packed), data<int32_t>(counts), rows, packed.size(1), packed.size(2)},
               k, mutable_data<float>(values), mutable_data<int64_t>(indices));
  return {values, indices};
}

template void merge(const Parts<float>&, int64_t, float*, int64_t*);
template void merge(const Parts<double>&, int64_t, double*, int64_t*);

}  // namespace cl::cpu
