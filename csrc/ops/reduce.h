// The one order in which sums are taken, on every backend (docs/numerics.md).
//
// A tensor is cut into blocks of 4096 elements by flat index. A block is a matrix of 16 rows by 256 lanes, row-major;
// each lane adds its 16 terms from the first row to the last in the compute type, the lanes are added pairwise
// (neighbours first) in the compute type, and blocks are added pairwise in float64. Elements past the end count as +0.
#pragma once

#include "common.h"

namespace warpmerge {

constexpr int kLanes = 256;
constexpr int kRows = 16;
constexpr int kBlock = kLanes * kRows;

// Sum of kLanes values by adjacent pairs. Destroys its argument.
template <class T>
WM_FN T sum_lanes(T* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[2 * i] + lanes[2 * i + 1];
  return lanes[0];
}

// Sum of `count` block partials by adjacent pairs; a last one without a partner moves up as it is. `stride` is the
// distance between two partials. Destroys its argument.
WM_FN double sum_blocks(double* partials, int64_t count, int64_t stride) {
  if (count == 0) return 0.0;
  while (count > 1) {
    const int64_t pairs = count / 2;
    for (int64_t i = 0; i < pairs; ++i)
      partials[i * stride] = partials[2 * i * stride] + partials[(2 * i + 1) * stride];
    if (count % 2) partials[pairs * stride] = partials[(count - 1) * stride];
    count = pairs + count % 2;
  }
  return partials[0];
}

}  // namespace warpmerge
