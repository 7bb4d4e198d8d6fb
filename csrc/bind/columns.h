// The columns that cross from Python: numbers, the tensors of a batch, and the places of its results.
//
// A column is a contiguous buffer with one or several entries for each tensor. Python hands over a whole array
// (array.array or numpy), so no Python object is made or looked at for a single tensor. A buffer of another item size
// or layout is refused.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "../cpu/tensor_group.h"

namespace warpmerge {

namespace py = pybind11;

// A contiguous buffer of T.
template <class T>
class Column {
 public:
  explicit Column(const py::buffer& buffer) : info_(buffer.request()) {
    if (info_.ndim != 1 || info_.itemsize != sizeof(T) || (info_.size > 1 && info_.strides[0] != sizeof(T)))
      throw py::value_error("a column is a contiguous buffer of entries of " + std::to_string(sizeof(T)) + " bytes");
  }
  size_t size() const { return size_t(info_.size); }
  const T* begin() const { return static_cast<const T*>(info_.ptr); }
  const T* end() const { return begin() + info_.size; }
  const T& operator[](size_t index) const { return begin()[index]; }

 private:
  const py::buffer_info info_;
};

// The entries of one tensor of so many.
template <class Entries>
auto share(const Entries& all, size_t tensor, size_t tensors) {
  const ptrdiff_t each = ptrdiff_t(all.size() / tensors);
  const auto first = all.begin() + ptrdiff_t(tensor) * each;
  return std::vector<std::decay_t<decltype(*first)>>(first, first + each);
}

template <class T>
std::vector<T> copied(const py::buffer& buffer) {
  const Column<T> column(buffer);
  return {column.begin(), column.end()};
}

// The operands of some rows of a group.
struct Rows {
  std::shared_ptr<TensorGroup> group;
  std::vector<int64_t> rows;
  std::vector<std::shared_ptr<Tensors>> tensors;

  size_t size() const { return tensors.size(); }
  void check(size_t entries, const char* what) const {
    if (size() == 0 ? entries != 0 : entries % size() != 0)
      throw py::value_error(std::string(what) + ": not a number of entries for each tensor");
  }
  void check(size_t entries, size_t wanted, const char* what) const {
    if (entries != wanted) throw py::value_error(std::string(what) + ": " + std::to_string(wanted) + " are needed");
  }
  size_t models() const {
    size_t sum = 0;
    for (const auto& one : tensors) sum += size_t(one->models());
    return sum;
  }
  size_t values() const {
    size_t sum = 0;
    for (const auto& one : tensors) sum += size_t(one->values());
    return sum;
  }
};

inline Rows rows_of(std::shared_ptr<TensorGroup> group, const py::buffer& rows, bool with_base,
                    const std::vector<std::shared_ptr<Formula>>& formulas) {
  Rows found{group, copied<int64_t>(rows), {}};
  if (!formulas.empty() && formulas.size() != found.rows.size()) throw py::value_error("a formula for each row");
  found.tensors.reserve(found.rows.size());
  for (size_t i = 0; i < found.rows.size(); ++i)
    found.tensors.push_back(group->tensors(found.rows[i], with_base, formulas.empty() ? nullptr : formulas[i]));
  return found;
}

// Where results go. The outputs of one tensor lie side by side.
struct Outputs {
  std::vector<Output> places;

  static Outputs in_files(int dtype, const std::vector<std::shared_ptr<File>>& files, const py::buffer& offsets,
                          const std::shared_ptr<Background>& background) {
    const Column<int64_t> at(offsets);
    if (files.size() != at.size()) throw py::value_error("an offset for each file");
    Outputs made;
    for (size_t i = 0; i < files.size(); ++i)
      made.places.push_back({Dtype(dtype), nullptr, files[i], at[i], background});
    return made;
  }
  static Outputs in_memory(int dtype, const py::buffer& addresses) {
    Outputs made;
    for (const uint64_t address : Column<uint64_t>(addresses))
      made.places.push_back({Dtype(dtype), reinterpret_cast<char*>(address), nullptr, 0, nullptr});
    return made;
  }
};

}  // namespace warpmerge
