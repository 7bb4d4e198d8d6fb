// The blocks of rows that begin in one chunk, and the threads that work on each.
//
// csrc/ops/reduce.h defines the order. A thread owns eight neighbouring lanes of a block. A short row does not fill all
// lanes, so a block gets only the threads that it needs, and a thread block works on several blocks at once. At the end
// of a chunk some threads have no block of their own. They repeat the last one, because all threads must take part in
// the shuffles of `fold_lanes`. Nobody writes the repeated result.
#pragma once

#include "../ops/reduce.h"
#include "warps.h"

namespace warpmerge {

constexpr int kPerThread = 8;  // neighbouring lanes of a thread

// A block of a row, and this thread's part of it.
struct RowBlock {
  int64_t number;  // in the tensor
  int64_t begin;   // position of its first element in the segment
  int length;
  int threads, lane;  // threads that work on the block; first lane of this thread
  bool exists;        // else this thread repeats the last block, for the shuffles
};

// Blocks of rows that begin before flat index `flat` of a tensor.
WM_FN int64_t row_blocks_before(int64_t flat, int64_t columns) {
  const int64_t row = flat / columns;
  return row * blocks_of_row(columns) + (flat - row * columns + kBlock - 1) / kBlock;
}

// Calls body(block) for the blocks that begin in the chunk, with as many threads for each block as its lanes ask for.
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

// Loads kPerThread elements from the `at`-th on, 16 bytes at a time if aligned. Elements past the end are `rest`.
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

// The row of `ranges` of the tensor that has the `number`-th result. A row begins with the number of the tensor's first
// result. Of several tensors with the same first result, only the last one has any results.
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
