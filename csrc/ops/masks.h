// Which elements of a delta survive sparsification. The rules are comparisons, and blind to tiling:
//   threshold  magnitude_key(d) > t, or == t at a flat index below `tie_end`
//   random     16 Philox bits of (key, element) below `cut`
//   by rank    16 Philox bits of (key, element) below ramp_cut of the element's rank in its row (cpu/ranks.inl)
// "All" is the threshold 0, "none" the threshold above every key; at cut = 65536 the random rule keeps everything.
#pragma once

#include "common.h"
#include "formula.h"
#include "philox.h"

namespace warpmerge {

struct Mask {
  bool random = false;
  uint64_t threshold = 0;  // magnitude key, of the compute type's width
  int64_t tie_end = INT64_MAX;
  uint64_t key = 0;
  uint32_t cut = 65536;
  int64_t columns = 0;  // of a row, by rank; 0 for the other rules
  double low = 0, step = 0;
  const uint8_t* decided = nullptr;  // by rank: bit e % 8 of byte e / 8 says whether element e is kept
};

// Of the ranks of a row, the cut of their draws: it rises by `step` with each rank, in whole numbers.
template <class T>
struct Ramp {
  T low, step;
};

template <class T>
WM_FN T ramp_cut(const Ramp<T>& ramp, T rank) {
  constexpr T kBig = ExponentField<T>::big;
  const T share = ramp.low + rank * ramp.step;
  const T whole = (share + kBig) - kBig;
  const T least = whole > T(1) ? whole : T(1);
  return least < T(65535) ? least : T(65535);
}

// The threshold rule over flat indices that are all below, or all at or above, `tie_end`: keep iff key >= this.
WM_FN uint64_t lowest_kept_key(const Mask& keep, int64_t index) {
  return index < keep.tie_end ? keep.threshold : keep.threshold + 1;
}

}  // namespace warpmerge
