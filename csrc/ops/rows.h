// Rows of a tensor: sums, the largest value, ranks.
//
// A row is summed like a tensor (reduce.h), its columns taking the place of flat indices, but in float64 throughout:
// blocks of 4096 columns, 16 rows of 256 lanes each, the lanes added pairwise, then the blocks. A rank orders the
// elements of a row by magnitude key (every NaN the canonical one), equal ones by column.
#pragma once

#include "common.h"
#include "reduce.h"

namespace warpmerge {

WM_FN int64_t blocks_of_row(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// Lanes that a row, or a block of one, can fill, rounded up to a power of two. The others hold the +0 that all lanes
// start from; no sum of lanes is -0, so adding them changes nothing and the tree may leave them out.
WM_FN int lanes_of(int64_t columns) {
  int lanes = 1;
  while (lanes < kLanes && lanes < columns) lanes *= 2;
  return lanes;
}

// Bins of the first pass of a ranking, at most.
constexpr int kRankBins = 4096;

}  // namespace warpmerge
