#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "../cpu/pool.h"

namespace warpmerge {

using PoolClass = pybind11::class_<Pool, std::shared_ptr<Pool>>;

// Views and tensors in columns, and the methods of the pool that make one request's items for many tensors at once.
void bind_batches(pybind11::module_& m, PoolClass& pool);

}  // namespace warpmerge
