// Exact selection of the k-th largest magnitude among n, without sorting: shrink an interval of keys until it holds
// one.
//
// A sweep over the data classifies each key against an interval [low, high]; its two ends are counted, and only what
// lies strictly between is collected. Deltas of 16-bit weights repeat few values, so a large group of equal keys nearly
// always sits on an end, where it costs a counter and no memory.
#pragma once

#include "common.h"

namespace warpmerge {

constexpr int kSelectBins = 2048;

// A rank orders the elements of a row by magnitude key (every NaN the canonical one), equal ones by column.
// Bins of the first pass of a ranking, at most.
constexpr int kRankBins = 4096;

// Bins of a histogram that is a result.
constexpr int kHistogramBins = 1 << 16;

// What is known of the keys in a bin of `count` keys, one more being added: which it is, if all are the same.
constexpr uint64_t kSeveralKeys = ~uint64_t(0);
WM_FN uint64_t note_key(uint64_t only, uint64_t count, uint64_t key) {
  return count == 0 || only == key ? key : kSeveralKeys;
}

// Bins of 2^shift keys so that at most `bins` of them cover [low, high].
WM_FN int covering_shift(uint64_t low, uint64_t high, int bins) {
  int shift = 0;
  while (((high - low) >> shift) >= uint64_t(bins)) ++shift;
  return shift;
}

WM_FN int select_shift(uint64_t low, uint64_t high) { return covering_shift(low, high, kSelectBins); }

}  // namespace warpmerge
