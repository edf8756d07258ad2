// Shows the selection of the best pairs to numpy (python_tests/compiled/test_selection.py).
#include "../selection.h"

#include <vector>

#include "arrays.h"

namespace cl::cpu {
namespace {

using Indices = Ids;

// The k best of scored keys that must beat (above, key 0), by a reservoir of the given capacity.
template <class T>
py::tuple best(const Array<T>& scores, const Indices& indices, int64_t k, int64_t capacity,
               T above) {
  std::vector<Packed<T>> storage(capacity);
  Reservoir<T> reservoir(storage.data(), capacity, k, pack(above, 0));
  for (py::ssize_t i = 0; i < scores.size(); ++i)
    reservoir.push(pack(scores.data()[i], indices.data()[i]));
  Array<T> values(k);
  Indices places(k);
  write_best<T>(storage.data(), reservoir.finish(), k, values.mutable_data(),
                places.mutable_data());
  return py::make_tuple(values, places);
}

// The k best, in any order, and the worst of them.
py::tuple keep(const Indices& pairs, int64_t k) {
  Indices result(pairs.size());
  std::copy_n(pairs.data(), pairs.size(), result.mutable_data());
  const int64_t worst = keep_best<float>(result.mutable_data(), result.size(), k);
  return py::make_tuple(result[py::slice(0, k, 1)], worst);
}

// The threshold above which there are k, without knowing what digits the pairs share.
int64_t radix_threshold(const Indices& pairs, int64_t k) {
  RadixSelect<float> select(k);
  while (!select.done()) {
    std::vector<int64_t> counts(RadixSelect<float>::kDigits);
    for (py::ssize_t i = 0; i < pairs.size(); ++i)
      if (select.matches(pairs.data()[i])) ++counts[select.digit(pairs.data()[i])];
    select.narrow(counts.data());
  }
  return select.threshold();
}

}  // namespace

void bind_selection(py::module_& m) {
  m.attr("EMPTY") = kEmpty<float>;
  m.def("pack", py::vectorize(&pack<float>));
  m.def("score_of", py::vectorize(&score_of<float>));
  m.def("index_of", py::vectorize(&index_of<float>));
  m.def("best32", &best<float>);
  m.def("best64", &best<double>);
  m.def("keep_best", &keep);
  m.def("radix_threshold", &radix_threshold);
  m.def("reservoir_capacity", &reservoir_capacity);
}

}  // namespace cl::cpu
