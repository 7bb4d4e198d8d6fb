// Headers of safetensors files, read into columns: names, kinds, shapes, offsets, sizes.
//
// A checkpoint of experts has 100,000 tensors. A general JSON parser would make several Python objects for each of
// them; this scanner makes a name and a shape, and equal shapes share one tuple. It reads only a header without a flaw:
// tensors follow each other and fill the file, and names need no escapes. For any other header the result is None.
// Python then reads the header with care and says what is wrong (python/warpmerge/models/safetensors.py). So the
// scanner has no error messages, and the rules have no second definition of an error.
#pragma once

#include <pybind11/pybind11.h>

namespace warpmerge {

void bind_headers(pybind11::module_& m);

}  // namespace warpmerge
