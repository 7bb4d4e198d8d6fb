// The orders in which sums are taken, on every backend (docs/numerics.md), and how floats compare.
//
// Tensor. A tensor is cut into blocks of 4096 elements by flat index. A block is a matrix of 16 rows by 256 lanes,
// row-major. Each lane adds its 16 terms from the first row to the last, starting at +0. The lanes are added pairwise,
// neighbours first; then the blocks are added pairwise in float64. Elements past the end count as +0. Terms and lanes
// are in the compute type.
//
// Row. A row is summed like a tensor, its columns taking the place of flat indices, but in float64 throughout. A sum
// over the tensor in float64 is that of one long row.
//
// Column. The rows are cut into blocks of as many rows each; the last block has the rest. The rows of a block are added
// one after the other in float64, starting at +0; then the blocks are added pairwise.
//
// A term of a row or column may be a product of two values. Both are taken to float64 first, where a product of two
// float32 is exact. No multiplication is contracted with an addition. A sum of products that is NaN is the canonical
// one.
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

// The terms that are folded over rows and columns: products of two values, values, or values of which the largest
// counts.
enum class Term : int { product = 0, value = 1, largest = 2 };

// The two ways of folding two numbers into one.
struct Add {
  WM_FN double of(double a, double b) { return a + b; }
};
struct Larger {
  WM_FN double of(double a, double b) { return b > a ? b : a; }
};

// Folds `count` block partials by adjacent pairs; a last one without a partner moves up as it is. `stride` is the
// distance between two partials. Destroys its argument.
template <class Fold>
WM_FN double fold_blocks(double* partials, int64_t count, int64_t stride) {
  if (count == 0) return 0.0;
  while (count > 1) {
    const int64_t pairs = count / 2;
    for (int64_t i = 0; i < pairs; ++i)
      partials[i * stride] = Fold::of(partials[2 * i * stride], partials[(2 * i + 1) * stride]);
    if (count % 2) partials[pairs * stride] = partials[(count - 1) * stride];
    count = pairs + count % 2;
  }
  return partials[0];
}

WM_FN double sum_blocks(double* partials, int64_t count, int64_t stride) {
  return fold_blocks<Add>(partials, count, stride);
}

WM_FN int64_t blocks_of_row(int64_t columns) { return (columns + kBlock - 1) / kBlock; }

// Lanes that a row, or a block of one, can fill, rounded up to a power of two. The others hold the +0 that all lanes
// start from; no sum of lanes is -0, so adding them changes nothing and the tree may leave them out.
WM_FN int lanes_of(int64_t columns) {
  int lanes = 1;
  while (lanes < kLanes && lanes < columns) lanes *= 2;
  return lanes;
}

// The most blocks of rows of a tensor: enough for many workers, and so few that their sums for one term take 4 MiB,
// unless a single row is longer.
constexpr int64_t kColumnBlocks = 64;
constexpr int64_t kColumnSums = int64_t(1) << 19;

WM_FN int64_t rows_of_column_block(int64_t rows, int64_t columns) {
  int64_t blocks = kColumnSums / columns;
  blocks = blocks < 1 ? 1 : blocks > kColumnBlocks ? kColumnBlocks : blocks;
  return (rows + blocks - 1) / blocks;
}

// Signed integers that order like the floats they come from: a maximum becomes an integer reduction, which vectorises
// without licence to reorder arithmetic.
template <class T>
struct OrderedOf;
template <>
struct OrderedOf<float> {
  using type = int32_t;
};
template <>
struct OrderedOf<double> {
  using type = int64_t;
};
template <class T>
using Ordered = typename OrderedOf<T>::type;

template <class T>
WM_FN Ordered<T> ordered(T x) {
  const Ordered<T> i = bit_cast<Ordered<T>>(x);
  return i ^ Ordered<T>(Bits<T>(i >> (8 * sizeof(T) - 1)) & FloatTraits<T>::magnitude);
}

// The inverse, with -0 read as +0.
template <class T>
WM_FN T from_ordered(Ordered<T> i) {
  return bit_cast<T>(i ^ Ordered<T>(Bits<T>(i >> (8 * sizeof(T) - 1)) & FloatTraits<T>::magnitude)) + T(0);
}

}  // namespace warpmerge
