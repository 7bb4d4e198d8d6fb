// Files, the thread behind them, and the watcher of calls to them.
#pragma once

#include <pybind11/pybind11.h>

namespace warpmerge {

// Also makes an OSError of each std::system_error, and what Python wants of an InputError.
void bind_files(pybind11::module_& m);

}  // namespace warpmerge
