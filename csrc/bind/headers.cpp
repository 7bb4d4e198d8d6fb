#include "headers.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../io/header_scan.h"

namespace py = pybind11;

namespace warpmerge {
namespace {

py::bytes bytes_of(const std::vector<int64_t>& column) {
  return py::bytes(reinterpret_cast<const char*>(column.data()), column.size() * sizeof(int64_t));
}

py::tuple tuple_of(const std::vector<int64_t>& lengths) {
  py::tuple made(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) made[i] = py::int_(lengths[i]);
  return made;
}

// None if a name is not UTF-8.
py::object decoded(const std::vector<std::string_view>& names) {
  py::list made(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    PyObject* text = PyUnicode_DecodeUTF8(names[i].data(), Py_ssize_t(names[i].size()), nullptr);
    if (!text) {
      PyErr_Clear();
      return py::none();
    }
    PyList_SET_ITEM(made.ptr(), Py_ssize_t(i), text);
  }
  return made;
}

// Equal shapes are one tuple.
py::list shapes_of(const HeaderColumns& columns) {
  std::vector<py::tuple> distinct;
  for (const auto& lengths : columns.distinct_shapes) distinct.push_back(tuple_of(lengths));
  py::list made(columns.shapes.size());
  for (size_t i = 0; i < columns.shapes.size(); ++i) {
    PyList_SET_ITEM(made.ptr(), Py_ssize_t(i), py::object(distinct[columns.shapes[i]]).release().ptr());
  }
  return made;
}

py::object scanned(const py::bytes& header, int64_t start, int64_t size, const HeaderTypes& dtypes) {
  HeaderColumns found;
  if (!scan_header(std::string_view(header), start, size, dtypes, found)) return py::none();
  const py::object names = decoded(found.names);
  if (names.is_none()) return names;
  return py::make_tuple(py::bytes(found.metadata.data(), found.metadata.size()), names, py::bytes(found.kinds),
                        shapes_of(found), bytes_of(found.offsets), bytes_of(found.sizes));
}

}  // namespace

void bind_headers(py::module_& m) {
  m.def("scan_header", &scanned, py::arg("header"), py::arg("start"), py::arg("size"), py::arg("dtypes"),
        "Columns of a header: metadata (JSON, empty without), names, kinds (indices into `dtypes`, a byte each), "
        "shapes, offsets and sizes (int64). None if it has to be read with more care.");
}

}  // namespace warpmerge
