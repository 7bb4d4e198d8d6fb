// Rules: the masks of csrc/ops/masks.h as kernels use them. A segment has one rule for each of its masks.
//
// A rule covers top-k masks and random masks. A top-k mask becomes two least keys, on either side of `tie_end`. Most
// packs lie on one side, so an element costs one comparison. A random mask takes the bits of a whole pack from one
// Philox call (`drawn_bits`). Rank masks have no rule here: their requests become expressions
// (python/warpmerge/backends/gpu/lowering.py). In exchange the kernels with rules stay small, and a rule fits into four
// numbers of the table.
#pragma once

#include "../ops/masks.h"
#include "grid.h"

namespace warpmerge {

// One mask. Top-k: keeps elements whose key is at least `before` at flat indices below `tie_end`, and at least `after`
// from there on. Random (`drawn`): keeps elements whose 16 bits are below `cut`.
template <class T>
struct Rule {
  Bits<T> before, after;
  int64_t tie_end;
  PhiloxKey key;
  uint32_t cut;
  bool drawn;
};

// No finite number has the key of all ones. So that key as a bound keeps nothing.
template <class T>
WM_FN Bits<T> key_or_none(uint64_t key) {
  return key > FloatTraits<T>::magnitude ? ~Bits<T>(0) : Bits<T>(key);
}

template <class T>
WM_FN Rule<T> rule_of(const int64_t* keep) {
  Rule<T> rule;
  Mask limits;
  limits.threshold = uint64_t(keep[1]);
  limits.tie_end = keep[2];
  rule.before = key_or_none<T>(lowest_kept_key(limits, limits.tie_end - 1));
  rule.after = key_or_none<T>(lowest_kept_key(limits, limits.tie_end));
  rule.tie_end = limits.tie_end;
  rule.key = {uint32_t(keep[3]), uint32_t(uint64_t(keep[3]) >> 32)};
  rule.cut = uint32_t(keep[0]);
  rule.drawn = keep[0] >= 0;
  // A random mask looks at no magnitude.
  if (rule.drawn) rule.before = rule.after = 0;
  return rule;
}

// Decides the eight elements of the Philox call that has the element `flat`. Bit j: the call's element j is drawn.
template <class T>
WM_FN uint32_t drawn_bits(const Rule<T>& rule, int64_t flat) {
  const uint64_t call = uint64_t(flat) / kPhiloxLanes;
  uint32_t c[4] = {uint32_t(call), uint32_t(call >> 32), 0, 0};
  PhiloxKey key = rule.key;
  WM_UNROLL
  for (int round = 0; round < kPhiloxRounds; ++round, key = philox_next(key)) philox_round(c[0], c[1], c[2], c[3], key);
  uint32_t bits = 0;
  WM_UNROLL
  for (int j = 0; j < kPhiloxLanes; ++j) bits |= uint32_t((c[j / 2] >> (16 * (j % 2)) & 0xffffu) < rule.cut) << j;
  return bits;
}

// Whether a pack of `n` elements from `flat` on has some on either side of `tie_end`.
template <class T>
WM_FN bool straddles(const Rule<T>& rule, int64_t flat, int n) {
  return flat < rule.tie_end && rule.tie_end < flat + n && rule.before != rule.after;
}

}  // namespace warpmerge
