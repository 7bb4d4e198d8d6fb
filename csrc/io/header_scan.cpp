#include "header_scan.h"

#include <unordered_map>
#include <unordered_set>

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
  Scanner(string_view text, int64_t start, const HeaderTypes& types, HeaderColumns& found)
      : cursor_(text), expected_(start), start_(start), found_(found) {
    for (size_t i = 0; i < types.size(); ++i) kinds_[types[i].first] = {char(i), types[i].second};
  }

  bool scan(int64_t size) {
    cursor_.expect('{');
    bool first = true;
    while (cursor_.good && cursor_.peek() != '}') {
      if (!first) cursor_.expect(',');
      first = false;
      const string_view name = cursor_.text();
      cursor_.expect(':');
      if (!cursor_.good) break;
      if (name == "__metadata__") {
        if (!found_.metadata.empty()) return false;
        found_.metadata = cursor_.object();
      } else if (!tensor(name)) {
        return false;
      }
    }
    cursor_.expect('}');
    return cursor_.good && cursor_.ended() && expected_ == size;
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
    found_.names.push_back(name);
    found_.shapes.push_back(number_of(fields.shape));
    found_.kinds.push_back(kind->second.first);
    found_.offsets.push_back(expected_);
    found_.sizes.push_back(bytes);
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

  // The number of a shape among the distinct ones.
  size_t number_of(string_view text) {
    const auto [place, is_new] = known_shapes_.try_emplace(text, found_.distinct_shapes.size());
    if (is_new) {
      Cursor cursor(text);
      std::vector<int64_t>& lengths = found_.distinct_shapes.emplace_back();
      while (!cursor.ended()) {
        lengths.push_back(cursor.number());
        cursor.take(',');
      }
    }
    return place->second;
  }

  Cursor cursor_;
  int64_t expected_;
  const int64_t start_;
  HeaderColumns& found_;
  std::unordered_map<string_view, std::pair<char, int>> kinds_;
  std::unordered_map<string_view, size_t> known_shapes_;
  std::unordered_set<string_view> seen_;
};

}  // namespace

bool scan_header(string_view text, int64_t start, int64_t size, const HeaderTypes& types, HeaderColumns& found) {
  return Scanner(text, start, types, found).scan(size);
}

}  // namespace warpmerge
