// Exact selection of the k-th largest magnitude among n, without sorting: shrink an interval of keys until it holds
// one.
//
// A sweep over the data classifies each key against an interval [low, high]. Keys at its two ends are counted, and keys
// strictly between are collected. Deltas of 16-bit weights repeat few values, so a large group of equal keys nearly
// always sits on an end, where it costs a counter and no memory. csrc/cpu/select.h and csrc/cuda/selection.h find the
// interval with a sample. docs/numerics.md ("Trimming") defines the result.
#pragma once

#include "common.h"

namespace warpmerge {

constexpr int kSelectBins = 2048;

// Ranks: they order the elements of a row by magnitude key (every NaN has the canonical one), and equal keys by column.
// The constant is the most bins of the first pass of a ranking.
constexpr int kRankBins = 4096;

// Bins of a histogram that is itself a result.
constexpr int kHistogramBins = 1 << 16;

// The one key of a bin, or kSeveralKeys: updates `only` when `key` joins a bin of `count` keys.
constexpr uint64_t kSeveralKeys = ~uint64_t(0);
WM_FN uint64_t note_key(uint64_t only, uint64_t count, uint64_t key) {
  return count == 0 || only == key ? key : kSeveralKeys;
}

// The shift with which at most `bins` bins of 2^shift keys cover [low, high].
WM_FN int covering_shift(uint64_t low, uint64_t high, int bins) {
  int shift = 0;
  while (((high - low) >> shift) >= uint64_t(bins)) ++shift;
  return shift;
}

WM_FN int select_shift(uint64_t low, uint64_t high) { return covering_shift(low, high, kSelectBins); }

}  // namespace warpmerge
