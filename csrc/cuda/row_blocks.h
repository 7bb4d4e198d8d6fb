// Thread blocks at work on the blocks of rows that begin in one chunk, in the order of ops/reduce.h.
#pragma once

#include "../ops/reduce.h"
#include "warps.h"

namespace warpmerge {

constexpr int kPerThread = 8;  // neighbouring lanes of a thread

// A block of a row, and what its threads have of it.
struct RowBlock {
  int64_t number;  // in the tensor
  int64_t begin;   // position of its first element in the segment
  int length;
  int threads, lane;  // all that work on it; the first lane of this one
  bool exists;        // else the last one is repeated, as all threads take part in shuffles
};

// Blocks of rows that begin before flat index `flat` of a tensor.
WM_FN int64_t row_blocks_before(int64_t flat, int64_t columns) {
  const int64_t row = flat / columns;
  return row * blocks_of_row(columns) + (flat - row * columns + kBlock - 1) / kBlock;
}

// Calls body(block) with as many threads for each block as its lanes ask for.
template <int kThreads, class Body>
WM_DEVICE void walk_row_blocks(const Chunk& chunk, int64_t columns, Body&& body) {
  const int64_t first = chunk.segment_row[kSegmentFirst], blocks = blocks_of_row(columns);
  const int64_t begin = row_blocks_before(first + chunk.begin, columns);
  const int64_t end = row_blocks_before(first + chunk.begin + chunk.count, columns);
  const int lanes = lanes_of(columns), threads = lanes > kPerThread ? lanes / kPerThread : 1;
  const int own = int(threadIdx.x) / threads, lane = int(threadIdx.x) % threads * kPerThread;
  for (int64_t start = begin; start < end; start += kThreads / threads) {
    const bool exists = start + own < end;
    const int64_t number = exists ? start + own : end - 1;
    const int64_t row = number / blocks, from = (number - row * blocks) * kBlock;
    const int length = int(columns - from < kBlock ? columns - from : kBlock);
    body(RowBlock{number, row * columns + from - first, length, threads, lane, exists});
  }
}

// kPerThread elements from the `at`-th on; `rest` past the end. In 16 bytes where they lie so.
template <class T>
WM_DEVICE void load_lanes(const T* values, int at, int length, double rest, double (&x)[kPerThread]) {
  constexpr int kVector = 16 / int(sizeof(T));
  values += at;
  if (length - at >= kPerThread && reinterpret_cast<uintptr_t>(values) % 16 == 0) {
    WM_UNROLL
    for (int v = 0; v < kPerThread; v += kVector) {
      const uint4 words = load_words<false>(reinterpret_cast<const uint4*>(values + v));
      T vector[kVector];
      __builtin_memcpy(vector, &words, 16);
      WM_UNROLL
      for (int e = 0; e < kVector; ++e) x[v + e] = double(vector[e]);
    }
  } else {
    WM_UNROLL
    for (int e = 0; e < kPerThread; ++e) x[e] = at + e < length ? double(__ldg(values + e)) : rest;
  }
}

// The tree over the lanes of a block's threads. All of them get the result.
template <class Fold>
WM_DEVICE double fold_lanes(double (&lanes)[kPerThread], int threads, Fold fold) {
  WM_UNROLL
  for (int width = kPerThread / 2; width > 0; width /= 2) {
    WM_UNROLL
    for (int e = 0; e < width; ++e) lanes[e] = fold(lanes[2 * e], lanes[2 * e + 1]);
  }
  double total = lanes[0];
  WM_ROLLED
  for (int distance = 1; distance < threads; distance *= 2)
    total = fold(total, __shfl_xor_sync(kWholeWarp, total, distance));
  return total;
}

// The last of some tensors whose first result is not behind the `number`-th: that of those which have any. A row of
// `ranges` begins with it.
constexpr int kRangeColumns = 4;
WM_DEVICE const int64_t* range_of(const int64_t* ranges, int64_t tensors, int64_t number) {
  int64_t low = 0, high = tensors - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (ranges[kRangeColumns * middle] <= number)
      low = middle;
    else
      high = middle - 1;
  }
  return ranges + kRangeColumns * low;
}

}  // namespace warpmerge
