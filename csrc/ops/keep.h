// Which elements of a delta survive sparsification. Two rules, both a comparison of integers, both blind to tiling:
//   threshold  magnitude_key(d) > t, or == t at a flat index below `tie_end`
//   random     16 Philox bits of (key, element) below `cut`
// "All" is the threshold 0, "none" the threshold above every key; at cut = 65536 the random rule keeps everything.
#pragma once

#include "common.h"
#include "philox.h"

namespace warpmerge {

struct Keep {
  bool random = false;
  uint64_t threshold = 0;  // magnitude key, of the compute type's width
  int64_t tie_end = INT64_MAX;
  uint64_t key = 0;
  uint32_t cut = 65536;
};

// The threshold rule over flat indices that are all below, or all at or above, `tie_end`: keep iff key >= this.
WM_FN uint64_t lowest_kept_key(const Keep& keep, int64_t index) {
  return index < keep.tie_end ? keep.threshold : keep.threshold + 1;
}

}  // namespace warpmerge
