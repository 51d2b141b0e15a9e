// Arrays of the Python bindings: numpy arrays are taken as they are (no copy, no conversion) or refused.
#pragma once

#include <pybind11/complex.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "udse_core.hpp"

namespace udse {
namespace bindings {

namespace py = pybind11;
using namespace py::literals;
using std::int64_t;

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Complexes = Array<cfloat>;
using Sizes = std::vector<int64_t>;

inline std::string text(const Sizes& sizes) {
  std::string out = "(";
  for (std::size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + (sizes.size() == 1 ? ",)" : ")");
}

inline Sizes sizes(const py::array& a) { return Sizes(a.shape(), a.shape() + a.ndim()); }

template <class T>
const T* in(const Array<T>& a, const char* name, const Sizes& expected) {
  if (sizes(a) != expected)
    throw Error(std::string(name) + " must have shape " + text(expected) + "; got " + text(sizes(a)));
  return a.data();
}

template <class T>
T* out(Array<T>& a, const char* name, const Sizes& expected) {
  if (!a.writeable()) throw Error(std::string(name) + " is read-only; give a writeable array");
  return const_cast<T*>(in(a, name, expected));
}

// Arrays that may be absent
template <class T>
const T* in(const std::optional<Array<T>>& a, const char* name, const Sizes& expected) {
  return a ? in(*a, name, expected) : nullptr;
}

template <class T>
T* out(std::optional<Array<T>>& a, const char* name, const Sizes& expected) {
  return a ? out(*a, name, expected) : nullptr;
}

}  // namespace bindings
}  // namespace udse
