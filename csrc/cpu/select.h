// The request `KthLargest` on one tensor: the exact k-th largest magnitude of each delta or value. csrc/ops/select.h
// has the method.
//
// A sample brackets each model's threshold (bracket.h). One sweep over all models counts the keys around the bracket
// and collects the keys inside. The rest is arithmetic on the collected keys. If the sample misleads, or the bracket
// holds too many keys, histogram sweeps shrink the interval: the host submits the item again until done(). So most
// tensors are read once, and memory is bounded by `capacity`. A small tensor is not sampled: all its keys are computed
// at once.
#pragma once

#include <mutex>

#include "item.h"

namespace warpmerge {

struct Selection {
  uint64_t threshold = 0;       // keep keys above it ...
  int64_t tie_end = INT64_MAX;  // ... and equal to it at a flat index below this
  int64_t above = 0;            // elements above the threshold
  int64_t ties = 0;             // elements equal to it
};

class SelectItemBase : public TensorItem {
 public:
  using TensorItem::TensorItem;
  virtual bool done() const = 0;
  virtual const std::vector<Selection>& result() const = 0;
  virtual int sweeps() const = 0;
};

// `keep[k]`: how many elements of delta or value k to keep, up to count; 0: not asked. `sample`: elements per model, 0
// for the default. `capacity`: the most keys per model that are collected, 0 for the default.
std::shared_ptr<SelectItemBase> make_select_item(const Kernels& kernels, std::shared_ptr<Tensors> tensors,
                                                 int64_t tile_elements, std::vector<int64_t> keep, bool keep_all_ties,
                                                 int64_t sample, int64_t capacity);

}  // namespace warpmerge
