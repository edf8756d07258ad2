// Shows the folds, one by one and over whole tiles, to numpy
// (python_tests/compiled/test_folds.py).
#include <pybind11/stl.h>

#include <optional>

#include "arrays.h"

namespace cl::cpu {
namespace {

template <class Fold, class T>
py::tuple results_of(const std::vector<Fold>& states) {
  Array<T> value(states.size());
  Ids count(Fold::kCounts ? states.size() : 0);
  for (size_t i = 0; i < states.size(); ++i)
    states[i].write(Outputs<T>{value.mutable_data(), count.mutable_data()}, i);
  return py::make_tuple(value, count);
}

// Values (and counts) of logits that are merged one by one, in halves if split.
template <class Fold, class T>
py::tuple merged(const Array<T>& logits, bool split) {
  Fold states[2] = {Fold::nothing(), Fold::nothing()};
  const int64_t half = split ? logits.size() / 2 : logits.size();
  for (int64_t j = 0; j < logits.size(); ++j) states[j >= half].merge(Fold::of(logits.data()[j]));
  states[0].merge(states[1]);
  return results_of<Fold, T>({states[0]});
}

// Of every row (dim 0) or column of a tile.
template <class Fold, class T>
py::tuple of_tile(const TileKernels<T>& kernels, const Array<T>& z, int dim) {
  check(z.ndim() == 2, "expected a matrix");
  const FoldKernels<Fold>& fold = kernels.template of<Fold>();
  std::vector<Fold> states(z.shape(dim));
  (dim == 0 ? fold.fold_rows : fold.fold_cols)(z.data(), z.shape(0), z.shape(1), states.data());
  return results_of<Fold, T>(states);
}

template <class T>
Upstream<T> upstream(const Array<T>& grad, const Array<T>& value, int64_t count) {
  check_length(grad, count);
  check_length(value, count);
  return {grad.data(), value.data()};
}

// Of the rows alone, or of both sides, of which the columns may see another tile.
template <class Fold, class T>
Array<T> weights(const TileKernels<T>& kernels, const Array<T>& z, const Array<T>& row_grad,
                 const Array<T>& row_value, const std::optional<Array<T>>& col_grad,
                 const std::optional<Array<T>>& col_value,
                 const std::optional<Array<T>>& mirrored) {
  const FoldKernels<Fold>& fold = kernels.template of<Fold>();
  Array<T> result = copy(z);
  T* tile = result.mutable_data();
  const int64_t m = z.shape(0), n = z.shape(1);
  const Upstream<T> row = upstream(row_grad, row_value, m);
  if (!col_grad) {
    fold.row_weights(tile, m, n, row);
    return result;
  }
  check(!mirrored || mirrored->size() == z.size(), "shapes");
  fold.row_col_weights(tile, mirrored ? mirrored->data() : tile, m, n, row,
                       upstream(*col_grad, *col_value, n));
  return result;
}

template <template <class> class Fold, class T>
void bind(py::class_<TileKernels<T>>& type, py::module_ m, const std::string& name) {
  type.def(("fold_" + name).c_str(), &of_tile<Fold<T>, T>, py::arg("z"), py::arg("dim"));
  type.def((name + "_weights").c_str(), &weights<Fold<T>, T>, py::arg("z"), py::arg("row_grad"),
           py::arg("row_value"), py::arg("col_grad") = py::none(),
           py::arg("col_value") = py::none(), py::arg("mirrored") = py::none());
  m.def(name.c_str(), &merged<Fold<T>, T>, py::arg("logits").noconvert(), py::arg("split") = false);
  m.def((name + "_weight").c_str(),
        [](const Array<T>& logit, const Array<T>& value) {
          Array<T> weight(logit.size());
          for (py::ssize_t i = 0; i < logit.size(); ++i)
            weight.mutable_data()[i] = Fold<T>::weight(logit.data()[i], value.data()[i]);
          return weight;
        },
        py::arg("logit").noconvert(), py::arg("value").noconvert());
}

template <class T, template <class> class... FOLD>
void bind_each(py::class_<TileKernels<T>>& type, py::module_ m, FoldList<FOLD...>) {
  (bind<FOLD>(type, m, FOLD<T>::kName), ...);
}

}  // namespace

template <class T>
void bind_folds(py::class_<TileKernels<T>>& type, py::module_ m) {
  bind_each(type, m, Folds{});
}

template void bind_folds(py::class_<TileKernels<float>>&, py::module_);
template void bind_folds(py::class_<TileKernels<double>>&, py::module_);

}  // namespace cl::cpu
