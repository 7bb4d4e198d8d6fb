#include "view.h"

#include <algorithm>
#include <cstring>

namespace warpmerge {

namespace {

// Pieces smaller than this are read many at a time and then spread out: the call that reads a file takes as long as 16
// KiB of data.
constexpr int64_t kSpread = 32 << 10;

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

}  // namespace warpmerge
