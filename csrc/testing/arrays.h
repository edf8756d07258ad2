// What the bindings share: numpy arrays in and out.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>

#include "../cpu/tile_kernels.h"

namespace cl::cpu {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Ids = Array<int64_t>;
using Bits = Array<uint16_t>;

inline void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
void check_length(const Array<T>& x, int64_t count) {
  check(x.ndim() == 1 && x.size() == count, "expected one number per row or column");
}

template <class T>
Array<T> copy(const Array<T>& z) {
  check(z.ndim() == 2, "expected a matrix");
  Array<T> result({z.shape(0), z.shape(1)});
  std::copy_n(z.data(), z.size(), result.mutable_data());
  return result;
}

// One number for each row (dim 0) or column of a matrix.
template <class T>
Array<T> vector_like(const Array<T>& z, int dim) {
  check(z.ndim() == 2, "expected a matrix");
  return Array<T>(z.shape(dim));
}

// The kernels of every instruction set that this machine has, the plainest first.
template <class T>
py::list usable_kernels() {
  py::list result;
  for (const InstructionSet* set : usable_instruction_sets())
    result.append(py::cast(&set->of<T>(), py::return_value_policy::reference));
  return result;
}

}  // namespace cl::cpu
