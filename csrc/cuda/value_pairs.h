// Value pairs: two values of a formula that a kernel reads once, for up to three of their products.
//
// A method often asks for the sums of `a a`, `a b` and `b b` together, over rows (reduce_rows.cu) or columns
// (reduce_columns.cu). A pair holds the numbers of these sums, so one read serves all three. In exchange a value that
// belongs to several pairs is read once for each of them.
#pragma once

#include "row_blocks.h"

namespace warpmerge {

// A product of two float32 is exact in float64. So its sum is rounded once, fused or not.
template <class T>
WM_DEVICE double add_product(double sum, double a, double b) {
  if constexpr (sizeof(T) == 4)
    return fma(a, b, sum);
  else
    return sum + a * b;
}

struct ValuePair {
  int64_t a, b;
  int64_t sum[3];  // number of the sum of a a, of a b and of b b; below 0: not asked for
};

WM_DEVICE ValuePair value_pair_of(const int64_t* value_pairs, int number) {
  const int64_t* row = value_pairs + int64_t(number) * kValuePairColumns;
  return {row[0], row[1], {row[2], row[3], row[4]}};
}

template <class T>
WM_DEVICE const T* values_of(const Chunk& chunk, int64_t value) {
  return reinterpret_cast<const T*>(address(chunk.segment_row, kSegmentInputs + int(value)));
}

}  // namespace warpmerge
