// One request on many tensors in one call from Python.
//
// A call names tensors by their rows in a group. Numbers that differ from tensor to tensor are columns: contiguous
// buffers whose entries for one tensor lie side by side. The call returns a batch, with one item for each tensor, and a
// batch answers in columns too. So a tensor costs no call of its own. In exchange all tensors of a batch must agree in
// group, kind of request and flags (python/warpmerge/backends/cpu/batches.py). Lengths of columns are checked here,
// once for each batch; kernels trust them.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "../cpu/select.h"
#include "host_pool.h"

namespace warpmerge {

using PoolClass = pybind11::class_<HostPool, std::shared_ptr<HostPool>>;

// Of each delta or value: threshold, tie_end, above, ties.
pybind11::list selections(const SelectItemBase& item);

// Binds views and tensors in columns, and the pool's methods that make items for many tensors at once.
void bind_batches(pybind11::module_& m, PoolClass& pool);

}  // namespace warpmerge
