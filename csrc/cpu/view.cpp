#include "view.h"

#include <algorithm>
#include <cstring>

#include "../ops/convert.h"

namespace warpmerge {

namespace {

// Pieces smaller than this are read many at a time and then spread out: the call that reads a file takes as long as 16
// KiB of data.
constexpr int64_t kSpread = 32 << 10;

constexpr int kNone = -1, kSeveral = -2;  // in place of a row's single source
constexpr int64_t kPiece = 2048;          // elements that are converted at a time

// Calls `body` with the place and the value of each of `count` elements of the type that `dtype` names.
template <class Body>
void for_each(Dtype dtype, const char* elements, int64_t count, Body&& body) {
  visit(dtype, [&](auto element) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(&element, elements + i * int64_t(sizeof element), sizeof element);
      body(i, widen(element));
    }
  });
}

// Rounds the values to the type that `dtype` names.
void store(Dtype dtype, const double* values, int64_t count, char* out) {
  visit(dtype, [&](auto element) {
    for (int64_t i = 0; i < count; ++i) {
      element = RoundTo<decltype(element)>::from(values[i]);
      std::memcpy(out + i * int64_t(sizeof element), &element, sizeof element);
    }
  });
}

}  // namespace

void View::read(int64_t begin, int64_t bytes, char* out) const {
  if (memory)
    std::memcpy(out, memory + begin, size_t(bytes));
  else if (composition)
    composition->read(offset + begin, bytes, out);
  else if (bytes > 0)  // a view of no elements may be of no memory
    file->read(out, size_t(bytes), offset + begin);
}

View View::from(int64_t byte) const {
  View rest = *this;
  if (memory)
    rest.memory += byte;
  else
    rest.offset += byte;
  return rest;
}

void GatheredRows::read(int64_t begin, int64_t bytes, char* out) const {
  while (bytes > 0) {
    const size_t first = size_t(begin / row_bytes_);
    const int64_t skipped = begin % row_bytes_;
    size_t last = first + 1;
    int64_t run = row_bytes_ - skipped;
    for (; run < bytes && last < index_.size() && index_[last] == index_[last - 1] + 1; ++last) run += row_bytes_;
    run = std::min(run, bytes);
    source_.read(index_[first] * row_bytes_ + skipped, run, out);
    begin += run;
    bytes -= run;
    out += run;
  }
}

void JoinedParts::read(int64_t begin, int64_t bytes, char* out) const {
  if (bytes == 0) return;
  for (size_t number = 0; number < parts_.size(); ++number) read_part(number, begin, begin + bytes, out);
}

// A range of the joined bytes has one range of each part. It is read in order; each piece is put into its place.
void JoinedParts::read_part(size_t number, int64_t begin, int64_t end, char* out) const {
  const int64_t stripe = starts_.back(), start = starts_[number], piece = starts_[number + 1] - start;
  const View& part = parts_[number];
  const auto part_bytes_before = [&](int64_t joined) {
    return joined / stripe * piece + std::clamp<int64_t>(joined % stripe - start, 0, piece);
  };
  const auto place = [&](int64_t at) { return out + (at / piece * stripe + start + at % piece - begin); };
  const int64_t stop = part_bytes_before(end);
  const bool spread = piece < kSpread && !part.memory;
  char staged[kSpread];
  for (int64_t at = part_bytes_before(begin); at < stop;) {
    const int64_t rest = std::min(stop - at, piece - at % piece);
    if (!spread || rest == stop - at) {
      part.read(at, rest, place(at));
      at += rest;
      continue;
    }
    const int64_t got = std::min(stop - at, kSpread);
    part.read(at, got, staged);
    for (const char *next = staged, *staged_end = staged + got; next < staged_end;) {
      const int64_t bytes = std::min<int64_t>(staged_end - next, piece - at % piece);
      std::memcpy(place(at), next, size_t(bytes));
      next += bytes;
      at += bytes;
    }
  }
}

MeanRows::MeanRows(Dtype dtype, std::vector<View> sources, std::vector<int64_t> index, int64_t row_elements)
    : dtype_(dtype), sources_(std::move(sources)), index_(std::move(index)), row_(row_elements) {
  only_.assign(index_.size() / sources_.size(), kNone);
  for (int source = 0; source < int(sources_.size()); ++source)
    for (size_t row = 0; row < only_.size(); ++row)
      if (this->index(source, int64_t(row)) >= 0) only_[row] = only_[row] == kNone ? source : kSeveral;
}

void MeanRows::read(int64_t begin, int64_t bytes, char* out) const {
  const int64_t size = itemsize(dtype_), rows = int64_t(only_.size());
  int64_t at = begin / size;
  const int64_t end = at + bytes / size;
  while (at < end) {
    const int64_t row = at / row_, skipped = at % row_;
    const int only = only_[size_t(row)];
    int64_t next = row + 1;  // the first row that is not one with these
    if (only >= 0)
      while (next * row_ < end && next < rows && only_[size_t(next)] == only &&
             index(only, next) == index(only, next - 1) + 1)
        ++next;
    const int64_t count = std::min(next * row_, end) - at;
    if (only >= 0)
      convert(sources_[size_t(only)], index(only, row) * row_ + skipped, count, out);
    else if (only == kSeveral)
      mean(row, skipped, count, out);
    else
      std::memset(out, 0, size_t(count * size));
    at += count;
    out += count * size;
  }
}

void MeanRows::convert(const View& source, int64_t first, int64_t count, char* out) const {
  const int64_t size = itemsize(dtype_), theirs = itemsize(source.dtype);
  if (source.dtype == dtype_) return source.read(first * size, count * size, out);
  char staged[kPiece * 8];
  double values[kPiece];
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t n = std::min(kPiece, count - at);
    source.read((first + at) * theirs, n * theirs, staged);
    for_each(source.dtype, staged, n, [&](int64_t i, double value) { values[i] = value; });
    store(dtype_, values, n, out + at * size);
  }
}

void MeanRows::mean(int64_t row, int64_t first, int64_t count, char* out) const {
  char staged[kPiece * 8];
  double sums[kPiece];
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t n = std::min(kPiece, count - at);
    std::fill_n(sums, n, -0.0);  // -0 + x is x
    int found = 0;
    for (int source = 0; source < int(sources_.size()); ++source) {
      if (index(source, row) < 0) continue;
      const View& view = sources_[size_t(source)];
      const int64_t theirs = itemsize(view.dtype);
      view.read((index(source, row) * row_ + first + at) * theirs, n * theirs, staged);
      for_each(view.dtype, staged, n, [&](int64_t i, double value) { sums[i] += value; });
      ++found;
    }
    for (int64_t i = 0; i < n; ++i) sums[i] /= found;
    store(dtype_, sums, n, out + at * itemsize(dtype_));
  }
}

std::vector<double> sum_rows(const View& view, int64_t rows, int64_t row_elements) {
  constexpr int64_t kRead = 1 << 20;  // bytes
  std::vector<double> sums(size_t(row_elements), 0.0);
  const int64_t row_bytes = row_elements * itemsize(view.dtype), step = std::max<int64_t>(1, kRead / row_bytes);
  std::vector<char> staged(size_t(std::min(step, rows) * row_bytes));
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t n = std::min(step, rows - first);
    view.read(first * row_bytes, n * row_bytes, staged.data());
    double* const sum = sums.data();
    for (int64_t row = 0; row < n; ++row)
      for_each(view.dtype, staged.data() + row * row_bytes, row_elements,
               [=](int64_t i, double value) { sum[i] += value; });
  }
  return sums;
}

}  // namespace warpmerge
