// A warp at work on one block of the reduction order (csrc/ops/reduce.h).
//
// Each thread owns neighbouring lanes and takes the rows of the block from the first to the last. The tree over the
// lanes is then additions within a thread, and five shuffles. So the documented order needs neither shared memory nor a
// barrier. In exchange the running sums of a thread's lanes take registers, so kernels with many sums own fewer lanes
// at a time (gram.cu).
#pragma once

#include "../ops/reduce.h"
#include "packs.h"

namespace warpmerge {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kBlocksPerChunk = kChunk / kBlock;
constexpr int kMeasureThreads = kBlocksPerChunk * kWarp;  // a thread block: one chunk, a warp for each of its blocks

// The tree over the 32 * N lanes of a warp. Each thread has N neighbouring lanes. All threads get the sum.
template <class T, int N>
WM_DEVICE T sum_of_lanes(const T (&lanes)[N]) {
  T pairs[N];
  WM_UNROLL
  for (int l = 0; l < N; ++l) pairs[l] = lanes[l];
  WM_UNROLL
  for (int width = N / 2; width > 0; width /= 2) {
    WM_UNROLL
    for (int l = 0; l < width; ++l) pairs[l] = pairs[2 * l] + pairs[2 * l + 1];
  }
  T sum = pairs[0];
  WM_UNROLL
  for (int distance = 1; distance < kWarp; distance *= 2) sum = sum + __shfl_xor_sync(kWholeWarp, sum, distance);
  return sum;
}

// The sum over a warp. For integers: the order is arbitrary.
template <class T>
WM_DEVICE T sum_of_warp(T value) {
  WM_UNROLL
  for (int distance = 1; distance < kWarp; distance *= 2) value = value + __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

// How many of a pack's elements from `at` on are in the chunk; 0 or less: none.
WM_FN int left_in(const Chunk& chunk, int at, int size) { return chunk.count - at < size ? chunk.count - at : size; }

// Deltas. One that is not finite becomes 0. `count`: count elements that are not finite.
template <class Pack>
WM_DEVICE void deltas_over_finite(const Table& table, const Chunk& chunk, int k, const Pack& x, const Pack& base,
                                  bool count, typename Pack::T (&d)[Pack::kSize]) {
  typename Pack::T poison = 0;  // NaN as soon as a delta is not finite
  WM_UNROLL
  for (int e = 0; e < Pack::kSize; ++e) {
    d[e] = x.get(e) - base.get(e);
    poison = poison + (d[e] - d[e]);
  }
  if (poison == poison) return;
  WM_UNROLL
  for (int e = 0; e < Pack::kSize; ++e) d[e] = settle_nonfinite(d[e], Nonfinite::base);
  if (count) count_nonfinite(table, chunk, k, x, base);
}

}  // namespace warpmerge
