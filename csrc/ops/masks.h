// Masks: which elements of a delta are kept. python/warpmerge/expr/masks.py defines them, docs/numerics.md has the
// rules.
//
//   top-k   magnitude_key(d) > threshold, or == threshold at a flat index below `tie_end`
//   random  16 Philox bits of (key, element) below `cut`
//   rank    16 Philox bits of (key, element) below ramp_cut of the element's rank in its row
//
// A mask is a small record, not an array, and its rule is a comparison. Top-k and random masks look at an element's
// value and flat index only, so they are the same however a tensor is cut into tiles. A rank mask needs whole rows. A
// CPU makes its decisions beforehand and keeps them as bits (csrc/cpu/by_rank.h). The threshold 0 keeps all elements,
// and so does a cut of 65536. A threshold above every key keeps none.
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
  int64_t columns = 0;  // rank mask: length of a row; 0 for other masks
  double low = 0, step = 0;
  const uint8_t* decided = nullptr;  // rank mask: bit e % 8 of byte e / 8 says whether element e is kept
};

// The cuts of the ranks of a row: `low`, and `step` more with each rank, rounded to whole numbers.
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

// The least key that a top-k mask keeps at this flat index. It changes at `tie_end` only.
WM_FN uint64_t lowest_kept_key(const Mask& keep, int64_t index) {
  return index < keep.tie_end ? keep.threshold : keep.threshold + 1;
}

}  // namespace warpmerge
