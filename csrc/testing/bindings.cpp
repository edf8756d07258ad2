// Shows the torch-free C++ to numpy (python_tests/test_statistics.py). Never installed.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "../cpu/exp.h"
#include "../cpu/schedule.h"
#include "../cpu/tile_kernels.h"
#include "../statistics.h"

namespace cl::cpu {

#define CL_DECLARE_KERNELS(isa)               \
  namespace isa {                             \
  extern const TileKernels<float> of_float;   \
  extern const TileKernels<double> of_double; \
  }
CL_DECLARE_KERNELS(baseline)
#ifdef CL_X86_64
CL_DECLARE_KERNELS(avx2)
CL_DECLARE_KERNELS(avx512)
#endif

namespace {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Ids = Array<int64_t>;
using Bits = Array<uint16_t>;

template <class T>
const TileKernels<T>& choose(const TileKernels<float>& of_float,
                             const TileKernels<double>& of_double) {
  if constexpr (sizeof(T) == 4)
    return of_float;
  else
    return of_double;
}

// The sets that this machine has, the plainest first: all up to the one that the library picks.
template <class T>
std::vector<const TileKernels<T>*> usable_kernels() {
  std::vector<const TileKernels<T>*> result;
  for (const TileKernels<T>* kernels : {
           &choose<T>(baseline::of_float, baseline::of_double),
#ifdef CL_X86_64
           &choose<T>(avx2::of_float, avx2::of_double),
           &choose<T>(avx512::of_float, avx512::of_double),
#endif
       }) {
    result.push_back(kernels);
    if (kernels == &tile_kernels<T>()) break;
  }
  return result;
}

void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
Array<T> matrix_like(const Array<T>& s) {
  check(s.ndim() == 2, "expected a matrix");
  return Array<T>({s.shape(0), s.shape(1)});
}

template <class T>
Array<T> copy(const Array<T>& s) {
  Array<T> result = matrix_like(s);
  std::copy_n(s.data(), s.size(), result.mutable_data());
  return result;
}

template <class T>
void check_length(const Array<T>& x, int64_t count) {
  check(x.ndim() == 1 && x.size() == count, "expected one number per row or column");
}

// (row, column, score) of every wanted element, in the order found.
template <class T>
py::list find_wanted(const TileKernels<T>& kernels, const Array<T>& s, const Array<T>& col_factor,
                     int64_t first, const std::vector<std::tuple<T, T, T, int64_t>>& rows) {
  check(s.ndim() == 2 && s.shape(1) == kStrip, "expected rows of kStrip");
  check_length(col_factor, kStrip);
  check(static_cast<py::ssize_t>(rows.size()) == s.shape(0), "expected one entry per row");
  std::vector<Wanted<T>> wanted;
  for (const auto& [factor, floor, ceiling, floor_index] : rows)
    wanted.push_back({factor, floor, ceiling, floor_index});
  std::vector<T> scores(s.size());
  std::vector<int32_t> positions(s.size());
  const int64_t count = kernels.find(s.data(), s.shape(0), col_factor.data(), first, wanted.data(),
                                     scores.data(), positions.data());
  py::list result;
  for (int64_t f = 0; f < count; ++f)
    result.append(py::make_tuple(positions[f] / kStrip, positions[f] % kStrip, scores[f]));
  return result;
}

template <class T>
void bind_kernels(py::module_& m, const char* name) {
  using Kernels = TileKernels<T>;
  using A = Array<T>;
  py::class_<Kernels> type(m, name);
  type.def_readonly("instruction_set", &Kernels::instruction_set);
  type.def_property_readonly_static("usable", [](const py::object&) {
    py::list result;
    for (const Kernels* kernels : usable_kernels<T>())
      result.append(py::cast(kernels, py::return_value_policy::reference));
    return result;
  });

  // c = a b or c += a b, or with a^T for an a that is stored transposed; in place, so that a test
  // can put c between numbers that must not change.
  for (const auto& [method, product] :
       {std::pair{"multiply", &Kernels::multiply}, {"add_product", &Kernels::add_product}})
    type.def(
        method,
        [product](const Kernels& kernels, const A& a, const A& b, A& c, bool transposed) {
          const int64_t m = c.shape(0), n = c.shape(1), k = b.shape(0);
          check(a.shape(transposed) == m && a.shape(!transposed) == k && b.shape(1) == n, "shapes");
          (kernels.*product)(a.data(), transposed ? 1 : k, transposed ? m : 1, b.data(),
                             c.mutable_data(), m, n, k);
        },
        py::arg("a"), py::arg("b"), py::arg("c").noconvert(), py::arg("transposed") = false);
  type.def(
      "transpose",
      [](const Kernels& kernels, const A& x, T factor, A& y) {
        check(y.shape(0) == x.shape(1) && y.shape(1) == x.shape(0), "shapes");
        kernels.transpose(x.data(), x.shape(0), x.shape(1), factor, y.mutable_data());
      },
      py::arg("x"), py::arg("factor"), py::arg("y").noconvert());

  for (const auto& [method, fold, dim] :
       {std::tuple{"fold_rows", &Kernels::fold_rows, 0}, {"fold_cols", &Kernels::fold_cols, 1}})
    type.def(method, [fold, dim](const Kernels& kernels, const A& s, T scale) {
      check(s.ndim() == 2, "expected a matrix");
      A max(s.shape(dim)), sum(s.shape(dim));
      (kernels.*fold)(s.data(), s.shape(0), s.shape(1), scale, max.mutable_data(),
                      sum.mutable_data());
      return py::make_tuple(max, sum);
    });
  type.def("max_rows", [](const Kernels& kernels, const A& s) {
    check(s.ndim() == 2, "expected a matrix");
    A max(s.shape(0));
    kernels.max_rows(s.data(), s.shape(0), s.shape(1), max.mutable_data());
    return max;
  });
  type.def("exp_rows", [](const Kernels& kernels, const A& s, T scale, const A& max) {
    A result = copy(s), sum(s.shape(0));
    check_length(max, s.shape(0));
    kernels.exp_rows(result.mutable_data(), s.shape(0), s.shape(1), scale, max.data(),
                     sum.mutable_data());
    return py::make_tuple(result, sum);
  });

  for (const auto& [method, weigh, dim] : {std::tuple{"row_weights", &Kernels::row_weights, 0},
                                           {"col_weights", &Kernels::col_weights, 1}})
    type.def(method, [weigh, dim](const Kernels& kernels, const A& s, T scale, const A& grad,
                                  const A& lse) {
      A result = copy(s);
      check_length(grad, s.shape(dim));
      check_length(lse, s.shape(dim));
      (kernels.*weigh)(result.mutable_data(), s.shape(0), s.shape(1), scale, grad.data(),
                       lse.data());
      return result;
    });
  type.def("row_col_weights",
           [](const Kernels& kernels, const A& s, const std::optional<A>& mirrored, T scale,
              const A& row_grad, const A& row_lse, const A& col_grad, const A& col_lse) {
             A result = copy(s);
             check(!mirrored || mirrored->size() == s.size(), "shapes");
             for (const A* x : {&row_grad, &row_lse}) check_length(*x, s.shape(0));
             for (const A* x : {&col_grad, &col_lse}) check_length(*x, s.shape(1));
             std::optional<A> other;
             if (mirrored) other = copy(*mirrored);
             T* both = result.mutable_data();
             kernels.row_col_weights(both, other ? other->mutable_data() : both, s.shape(0),
                                     s.shape(1), scale, row_grad.data(), row_lse.data(),
                                     col_grad.data(), col_lse.data());
             return result;
           });
  type.def("drop", [](const Kernels& kernels, const A& values, const Ids& row_ids,
                      const Ids& col_ids, bool keep_same, T fill) {
    A result = copy(values);
    check_length(row_ids, values.shape(0));
    check_length(col_ids, values.shape(1));
    kernels.drop(result.mutable_data(), values.shape(0), values.shape(1), row_ids.data(),
                 col_ids.data(), keep_same, fill);
    return result;
  });

  for (const auto& [method, widen] : {std::pair{"widen_bfloat16", &Kernels::widen_bfloat16},
                                      {"widen_float16", &Kernels::widen_float16}})
    type.def(method, [widen](const Kernels& kernels, const Bits& x) {
      A y(x.size());
      (kernels.*widen)(x.data(), x.size(), y.mutable_data());
      return y;
    });
  for (const auto& [method, round] : {std::pair{"round_bfloat16", &Kernels::round_bfloat16},
                                      {"round_float16", &Kernels::round_float16}})
    type.def(method, [round](const Kernels& kernels, const A& x) {
      A y(x.size());
      (kernels.*round)(x.data(), x.size(), y.mutable_data());
      return y;
    });
  type.def("dot", [](const Kernels& kernels, const A& x, const A& y) {
    check_length(y, x.size());
    return kernels.dot(x.data(), y.data(), x.size());
  });
  type.def("combine", [](const Kernels& kernels, T a, const A& y, T b, const A& x) {
    check_length(x, y.size());
    A result(y.size());
    std::copy_n(y.data(), y.size(), result.mutable_data());
    kernels.combine(a, result.mutable_data(), b, x.data(), x.size());
    return result;
  });
  type.def("scale_and_dot", [](const Kernels& kernels, const A& rows, const A& x, T scale) {
    check_length(rows, x.size());
    A result(x.size());
    std::copy_n(x.data(), x.size(), result.mutable_data());
    const T inner = kernels.scale_and_dot(rows.data(), result.mutable_data(), x.size(), scale);
    return py::make_tuple(result, inner);
  });
  type.def("find", &find_wanted<T>);
  type.def("all_finite", [](const Kernels& kernels, const A& x) {
    return kernels.all_finite(x.data(), x.size());
  });
}

template <class T>
void bind_statistics(py::module_& m, const char* running) {
  using Running = RunningLogSumExp<T>;
  py::class_<Running>(m, running)
      .def(py::init<>())
      .def_readonly("max", &Running::max)
      .def_readonly("sum", &Running::sum)
      .def("merge", &Running::merge)
      .def("value", &Running::value);
  m.def("exp_nonpositive", [](const Array<T>& x) {
    Array<T> y(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) y.mutable_data()[i] = exp_nonpositive(x.data()[i]);
    return y;
  });
}

// (row, col, row_turn, col_turn) for every index; None for a bye.
template <class Schedule>
py::list tiles(const Schedule& schedule) {
  py::list result;
  ScheduledTile tile;
  for (int64_t index = 0; index < schedule.size(); ++index)
    if (schedule.tile(index, tile))
      result.append(py::make_tuple(tile.row, tile.col, tile.row_turn, tile.col_turn));
    else
      result.append(py::none());
  return result;
}

}  // namespace

void bind_selection(py::module_& m);  // selection.cpp

}  // namespace cl::cpu

PYBIND11_MODULE(cl_testing, m) {
  using namespace cl::cpu;
  bind_kernels<float>(m, "TileKernels32");
  bind_kernels<double>(m, "TileKernels64");
  bind_statistics<float>(m, "RunningLogSumExp32");
  bind_statistics<double>(m, "RunningLogSumExp64");
  bind_selection(m);
  m.def("tournament", [](int64_t blocks) { return tiles(Tournament(blocks)); });
  m.def("latin_square", [](int64_t rows, int64_t cols) { return tiles(LatinSquare(rows, cols)); });
}
