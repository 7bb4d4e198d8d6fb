// A libFuzzer harness for the native scanner of headers (csrc/io/header_scan.h). The first two bytes of an input say
// how many bytes of data the file has, the others are the header. tests/fuzz/native.py builds and runs it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/io/header_scan.h"

using namespace warpmerge;

namespace {

const HeaderTypes kTypes = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"U8", 1}, {"BOOL", 1}, {"F8_E4M3", 1}};

void demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// What holds of every header that is understood.
void check(std::string_view text, int64_t start, int64_t size, const HeaderColumns& found) {
  const size_t count = found.names.size();
  demand(found.kinds.size() == count && found.shapes.size() == count, "columns have one length");
  demand(found.offsets.size() == count && found.sizes.size() == count, "columns have one length");
  int64_t expected = start;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view name = found.names[i];
    demand(name.data() >= text.data() && name.data() + name.size() <= text.data() + text.size(),
           "names lie in the text");
    demand(found.offsets[i] == expected && found.sizes[i] >= 0, "tensors follow each other");
    expected += found.sizes[i];
    __int128 bytes = kTypes[size_t(found.kinds[i])].second;
    for (const int64_t length : found.distinct_shapes[found.shapes[i]]) {
      demand(length >= 0, "lengths are not negative");
      bytes *= length;
    }
    demand(bytes == found.sizes[i], "a shape has its bytes");
  }
  demand(expected == size, "tensors fill the file");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, bytes - 2);
  const int64_t start = 8 + int64_t(text.size()), size = start + data[0] + 256 * data[1];
  HeaderColumns found;
  if (scan_header(text, start, size, kTypes, found)) check(text, start, size, found);
  return 0;
}
