#include "headers.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace py = pybind11;

namespace warpmerge {
namespace {

using std::string_view;

constexpr int kDigits = 18;  // a number of so many digits fits into 64 bits

// A cursor over JSON. `good` becomes false if something cannot be read.
class Cursor {
 public:
  explicit Cursor(string_view text) : at_(text.data()), end_(text.data() + text.size()) {}

  bool good = true;

  // The next byte that is no white space, 0 at the end.
  char peek() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
    return at_ == end_ ? 0 : *at_;
  }

  bool ended() { return peek() == 0 && at_ == end_; }

  bool take(char wanted) {
    if (peek() != wanted || at_ == end_) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) { good = good && take(wanted); }

  // A string without escapes.
  string_view text() {
    expect('"');
    const char* begin = at_;
    while (at_ != end_ && *at_ != '"') {
      if (*at_ == '\\' || static_cast<unsigned char>(*at_) < 0x20) good = false;
      ++at_;
    }
    const string_view found(begin, size_t(at_ - begin));
    expect('"');
    return found;
  }

  int64_t number() {
    peek();
    const char* begin = at_;
    int64_t value = 0;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9' && at_ - begin < kDigits) value = value * 10 + (*at_++ - '0');
    const bool digit_follows = at_ != end_ && *at_ >= '0' && *at_ <= '9';
    good = good && at_ != begin && !digit_follows && !(*begin == '0' && at_ - begin > 1);
    return value;
  }

  // The text of an object with any content.
  string_view object() {
    peek();
    const char* begin = at_;
    int depth = 0;
    bool quoted = false;
    for (; at_ != end_; ++at_) {
      if (quoted) {
        if (*at_ == '\\' && at_ + 1 != end_)
          ++at_;
        else if (*at_ == '"')
          quoted = false;
      } else if (*at_ == '"') {
        quoted = true;
      } else if (*at_ == '{') {
        ++depth;
      } else if (*at_ == '}' && --depth == 0) {
        ++at_;
        return {begin, size_t(at_ - begin)};
      }
      if (depth == 0) break;
    }
    good = false;
    return {};
  }

  const char* position() const { return at_; }

 private:
  const char* at_;
  const char* const end_;
};

struct Fields {
  string_view dtype, shape;
  int64_t count = 1, begin = 0, end = 0;
};

class Scanner {
 public:
  Scanner(string_view text, int64_t start, const std::vector<std::pair<std::string, int>>& dtypes)
      : cursor_(text), expected_(start), start_(start) {
    for (size_t i = 0; i < dtypes.size(); ++i) kinds_[dtypes[i].first] = {char(i), dtypes[i].second};
  }

  // Metadata, names, kinds, shapes, offsets, sizes; None for a header that Python must read.
  py::object columns(int64_t size) {
    cursor_.expect('{');
    bool first = true;
    while (cursor_.good && cursor_.peek() != '}') {
      if (!first) cursor_.expect(',');
      first = false;
      const string_view name = cursor_.text();
      cursor_.expect(':');
      if (!cursor_.good) break;
      if (name == "__metadata__") {
        if (!metadata_.empty()) return py::none();
        metadata_ = cursor_.object();
      } else if (!tensor(name)) {
        return py::none();
      }
    }
    cursor_.expect('}');
    if (!cursor_.good || !cursor_.ended() || expected_ != size) return py::none();
    return py::make_tuple(py::bytes(metadata_.data(), metadata_.size()), names_, py::bytes(found_kinds_), shapes_,
                          bytes_of(offsets_), bytes_of(sizes_));
  }

 private:
  bool tensor(string_view name) {
    const Fields fields = this->fields();
    const auto kind = kinds_.find(fields.dtype);
    if (!cursor_.good || kind == kinds_.end() || !seen_.insert(name).second) return false;
    const int64_t bytes = fields.end - fields.begin;
    int64_t wanted;
    if (__builtin_mul_overflow(fields.count, int64_t(kind->second.second), &wanted)) return false;
    if (start_ + fields.begin != expected_ || bytes != wanted) return false;
    PyObject* text = PyUnicode_DecodeUTF8(name.data(), Py_ssize_t(name.size()), nullptr);
    if (!text) {
      PyErr_Clear();
      return false;
    }
    names_.append(py::reinterpret_steal<py::object>(text));
    shapes_.append(shape_of(fields.shape));
    found_kinds_.push_back(kind->second.first);
    offsets_.push_back(expected_);
    sizes_.push_back(bytes);
    expected_ += bytes;
    return true;
  }

  Fields fields() {
    Fields found;
    int seen = 0;
    cursor_.expect('{');
    for (int n = 0; n < 3 && cursor_.good; ++n) {
      if (n) cursor_.expect(',');
      const string_view key = cursor_.text();
      cursor_.expect(':');
      if (key == "dtype") {
        found.dtype = cursor_.text();
        seen |= 1;
      } else if (key == "shape") {
        found.shape = shape(found.count);
        seen |= 2;
      } else if (key == "data_offsets") {
        cursor_.expect('[');
        found.begin = cursor_.number();
        cursor_.expect(',');
        found.end = cursor_.number();
        cursor_.expect(']');
        seen |= 4;
      }
    }
    cursor_.expect('}');
    cursor_.good = cursor_.good && seen == 7;
    return found;
  }

  // The text between the brackets. `count` is multiplied by the lengths.
  string_view shape(int64_t& count) {
    cursor_.expect('[');
    const char* begin = cursor_.position();
    for (bool first = true; cursor_.good && cursor_.peek() != ']'; first = false) {
      if (!first) cursor_.expect(',');
      if (__builtin_mul_overflow(count, cursor_.number(), &count)) cursor_.good = false;
    }
    const string_view found(begin, size_t(cursor_.position() - begin));
    cursor_.expect(']');
    return found;
  }

  // Equal shapes are one tuple.
  py::object shape_of(string_view text) {
    const auto known = known_shapes_.find(text);
    if (known != known_shapes_.end()) return known->second;
    Cursor cursor(text);
    py::list lengths;
    while (!cursor.ended()) {
      lengths.append(py::int_(cursor.number()));
      cursor.take(',');
    }
    return known_shapes_[text] = py::tuple(lengths);
  }

  static py::bytes bytes_of(const std::vector<int64_t>& column) {
    return py::bytes(reinterpret_cast<const char*>(column.data()), column.size() * sizeof(int64_t));
  }

  Cursor cursor_;
  int64_t expected_;
  const int64_t start_;
  std::unordered_map<string_view, std::pair<char, int>> kinds_;
  std::unordered_map<string_view, py::object> known_shapes_;
  std::unordered_set<string_view> seen_;
  string_view metadata_;
  py::list names_, shapes_;
  std::string found_kinds_;
  std::vector<int64_t> offsets_, sizes_;
};

py::object scan_header(const py::bytes& header, int64_t start, int64_t size,
                       const std::vector<std::pair<std::string, int>>& dtypes) {
  return Scanner(string_view(header), start, dtypes).columns(size);
}

}  // namespace

void bind_headers(py::module_& m) {
  m.def("scan_header", &scan_header, py::arg("header"), py::arg("start"), py::arg("size"), py::arg("dtypes"),
        "Columns of a header: metadata (JSON, empty without), names, kinds (indices into `dtypes`, a byte each), "
        "shapes, offsets and sizes (int64). None if it has to be read with more care.");
}

}  // namespace warpmerge
