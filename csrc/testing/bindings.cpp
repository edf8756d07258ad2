// Shows the torch-free C++ to numpy (python_tests/compiled). Never installed.
#include <pybind11/stl.h>

#include <optional>

#include "../cpu/exp.h"
#include "../cpu/schedule.h"
#include "../epilogues.h"
#include "arrays.h"

namespace cl::cpu {

void bind_selection(py::module_& m);  // selection.cpp
template <class T>
void bind_folds(py::class_<TileKernels<T>>& type, py::module_ m);  // folds.cpp

namespace {

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
  type.def_property_readonly_static("usable",
                                    [](const py::object&) { return usable_kernels<T>(); });
  bind_folds(type, m);

  // c = factor * (a b) or c += a b, or with a^T for an a that is stored transposed; in place, so
  // that a test can put c between numbers that must not change.
  const auto product = [](const A& a, const A& b, const A& c, bool transposed,
                          const auto& compute) {
    const int64_t m = c.shape(0), n = c.shape(1), k = b.shape(0);
    check(a.shape(transposed) == m && a.shape(!transposed) == k && b.shape(1) == n, "shapes");
    compute(transposed ? 1 : k, transposed ? m : 1, m, n, k);
  };
  type.def(
      "multiply",
      [product](const Kernels& kernels, const A& a, const A& b, A& c, bool transposed, T factor) {
        product(a, b, c, transposed, [&](auto row, auto col, auto m, auto n, auto k) {
          kernels.multiply(a.data(), row, col, b.data(), c.mutable_data(), m, n, k, factor);
        });
      },
      py::arg("a"), py::arg("b"), py::arg("c").noconvert(), py::arg("transposed") = false,
      py::arg("factor") = 1);
  type.def(
      "add_product",
      [product](const Kernels& kernels, const A& a, const A& b, A& c, bool transposed) {
        product(a, b, c, transposed, [&](auto row, auto col, auto m, auto n, auto k) {
          kernels.add_product(a.data(), row, col, b.data(), c.mutable_data(), m, n, k);
        });
      },
      py::arg("a"), py::arg("b"), py::arg("c").noconvert(), py::arg("transposed") = false);
  type.def(
      "transpose",
      [](const Kernels& kernels, const A& x, A& y) {
        check(y.shape(0) == x.shape(1) && y.shape(1) == x.shape(0), "shapes");
        kernels.transpose(x.data(), x.shape(0), x.shape(1), y.mutable_data());
      },
      py::arg("x"), py::arg("y").noconvert());

  type.def("max_rows", [](const Kernels& kernels, const A& z) {
    A max = vector_like(z, 0);
    kernels.max_rows(z.data(), z.shape(0), z.shape(1), max.mutable_data());
    return max;
  });
  type.def("exp_rows", [](const Kernels& kernels, const A& z, const A& max) {
    A result = copy(z), sum = vector_like(z, 0);
    check_length(max, z.shape(0));
    kernels.exp_rows(result.mutable_data(), z.shape(0), z.shape(1), max.data(), sum.mutable_data());
    return py::make_tuple(result, sum);
  });
  type.def("drop", [](const Kernels& kernels, const A& z, const Ids& row_ids, const Ids& col_ids,
                      bool keep_same) {
    A result = copy(z);
    check_length(row_ids, z.shape(0));
    check_length(col_ids, z.shape(1));
    kernels.drop(result.mutable_data(), z.shape(0), z.shape(1), row_ids.data(), col_ids.data(),
                 keep_same);
    return result;
  });
  for (const auto& [method, scale_within, dim] :
       {std::tuple{"scale_within_rows", &Kernels::scale_within_rows, 0},
        {"scale_within_cols", &Kernels::scale_within_cols, 1}})
    type.def(method, [scale_within, dim](const Kernels& kernels, const A& s, T scale,
                                         const std::optional<A>& below,
                                         const std::optional<A>& above) {
      A result = copy(s);
      for (const auto* bound : {&below, &above})
        if (*bound) check_length(**bound, s.shape(dim));
      (kernels.*scale_within)(result.mutable_data(), s.shape(0), s.shape(1), scale,
                              {below ? below->data() : nullptr, above ? above->data() : nullptr});
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
void bind_exp(py::module_& m) {
  m.def("exp_nonpositive", [](const Array<T>& x) {
    Array<T> y(x.size());
    for (py::ssize_t i = 0; i < x.size(); ++i) y.mutable_data()[i] = exp_nonpositive(x.data()[i]);
    return y;
  });
}

// (value, by negatives, by positive) of each epilogue, by name.
template <class T>
void bind_epilogues(py::module_& m, const char* name) {
  py::dict epilogues;
  for (const Epilogue<T>& epilogue : kEpilogues<T>)
    epilogues[epilogue.name] = py::cpp_function([epilogue](T negatives, T positive) {
      const auto [by_negatives, by_positive] = epilogue.pulls(negatives, positive);
      return py::make_tuple(epilogue.value(negatives, positive), by_negatives, by_positive);
    });
  m.attr(name) = epilogues;
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

}  // namespace cl::cpu

PYBIND11_MODULE(cl_testing, m) {
  using namespace cl::cpu;
  bind_kernels<float>(m, "TileKernels32");
  bind_kernels<double>(m, "TileKernels64");
  bind_exp<float>(m);
  bind_exp<double>(m);
  bind_epilogues<float>(m, "EPILOGUES32");
  bind_epilogues<double>(m, "EPILOGUES64");
  bind_selection(m);
  m.def("tournament", [](int64_t blocks) { return tiles(Tournament(blocks)); });
  m.def("latin_square", [](int64_t rows, int64_t cols) { return tiles(LatinSquare(rows, cols)); });
}
