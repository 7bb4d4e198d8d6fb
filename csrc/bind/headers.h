#pragma once

#include <pybind11/pybind11.h>

namespace warpmerge {

void bind_headers(pybind11::module_& m);

}  // namespace warpmerge
