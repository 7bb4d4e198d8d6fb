// Sums of products of two values, per row or per column of a tensor.
//
// Values are taken to float64, where a product of two float32 is exact; one that is not finite counts as 0. Products
// are rounded once, and no multiplication is contracted with an addition. A sum that is NaN is the canonical one.
//
// Per row the order is that of rows.h. Per column the rows are cut into blocks of as many rows each, the last one of
// what is left; the rows of a block are added one after the other, from +0 on; blocks are added pairwise as in
// reduce.h.
#pragma once

#include "common.h"
#include "rows.h"

namespace warpmerge {

// Blocks of rows of a tensor, at most: enough for many workers, and few enough that their sums for one pair are 4 MiB
// unless a single row is longer.
constexpr int64_t kColumnBlocks = 64;
constexpr int64_t kColumnSums = int64_t(1) << 19;

WM_FN int64_t rows_of_column_block(int64_t rows, int64_t columns) {
  int64_t blocks = kColumnSums / columns;
  blocks = blocks < 1 ? 1 : blocks > kColumnBlocks ? kColumnBlocks : blocks;
  return (rows + blocks - 1) / blocks;
}

}  // namespace warpmerge
