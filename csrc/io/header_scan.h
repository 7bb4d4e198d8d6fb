// Scans the header of a safetensors file into columns. It reads headers as programs write them; one that it does not
// understand (escapes, other fields, tensors out of order, mistakes) is left to the careful reader in Python.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace warpmerge {

// A type's name in the file format, and the bytes of one element.
using HeaderTypes = std::vector<std::pair<std::string, int>>;

// One item per tensor, in the order of the data. Texts are parts of the header.
struct HeaderColumns {
  std::string_view metadata;            // a JSON object, not checked; empty if there is none
  std::vector<std::string_view> names;  // any bytes but quotes, escapes and control characters
  std::string kinds;                    // indices into the types
  std::vector<size_t> shapes;           // indices into `distinct_shapes`
  std::vector<std::vector<int64_t>> distinct_shapes;
  std::vector<int64_t> offsets, sizes;  // in bytes; offsets from the start of the file
};

// `start`: where the data begins in the file, `size`: bytes of the file. False: the header was not understood.
bool scan_header(std::string_view text, int64_t start, int64_t size, const HeaderTypes& types, HeaderColumns& found);

}  // namespace warpmerge
