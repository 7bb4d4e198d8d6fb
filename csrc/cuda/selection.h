// The common part of the kernels of `KthLargest`: the exact k-th largest magnitude of each delta or value.
//
// csrc/ops/select.h has the method. select_sample.cu opens an interval of keys. select_sweep.cu counts the keys in its
// bins and shrinks it, until it holds one key. select_ties.cu then finds the last tie to keep. The progress of each
// tensor and model is a row of `state` (SelectColumn in launch.h), in device memory. So the host queues several steps
// before it looks at the result (python/warpmerge/backends/gpu/requests.py). In exchange some launches find nothing
// left to do.
#pragma once

#include "../ops/select.h"
#include "warps.h"

namespace warpmerge {

constexpr int kSelectThreads = 256;
constexpr int kBinColumns = kSelectBins + 2;

// Packs of a thread whose loads are issued together.
template <class Pack>
constexpr int kPacksTogether = sizeof(Pack) <= 32 ? 2 : 1;

WM_FN int64_t* state_of(int64_t* state, const Table& table, const Chunk& chunk, int model) {
  return state + (chunk.segment_row[kSegmentTensor] * table.models + model) * kSelectColumns;
}

WM_FN const int64_t* state_of(const int64_t* state, const Table& table, const Chunk& chunk, int model) {
  return state + (chunk.segment_row[kSegmentTensor] * table.models + model) * kSelectColumns;
}

// A whole segment as one chunk.
WM_FN Chunk whole_segment(const Table& table, int64_t segment) {
  return {segment_row_of(table, segment), segment, 0, kChunk};
}

template <class Pack>
WM_DEVICE void load_with_base(const Table& table, const ChunkSource& input, const ChunkSource& base, int at, int n,
                              Pack& x, Pack& b) {
  x.template load<false>(input, at, n);
  if (table.has_base)
    b.template load<false>(base, at, n);
  else
    b.clear();
}

// Keys of a pack's deltas. `count`: count elements that are not finite.
template <class Pack>
WM_DEVICE void keys_of(const Table& table, const Chunk& chunk, int k, const Pack& x, const Pack& base, bool count,
                       Bits<typename Pack::T> (&keys)[kPack]) {
  using T = typename Pack::T;
  bool finite = true;
  WM_UNROLL
  for (int e = 0; e < kPack; ++e) {
    keys[e] = magnitude_key(x.get(e) - base.get(e));
    finite &= keys[e] < FloatTraits<T>::infinity;
  }
  if (finite) return;
  WM_UNROLL
  for (int e = 0; e < kPack; ++e) keys[e] = magnitude_key(settle_nonfinite(x.get(e) - base.get(e), table.policy));
  if (count) count_nonfinite(table, chunk, k, x, base);
}

// Sum over a thread block of kSelectThreads threads. All threads get it.
template <class T>
WM_DEVICE T sum_of_block(T value, T* shared) {
  value = sum_of_warp(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  WM_UNROLL
  for (int w = 0; w < kSelectThreads / kWarp; ++w) sum += shared[w];
  return sum;
}

// The sum of the values of this thread and of all before it.
WM_DEVICE int64_t inclusive_scan(int64_t value, int64_t* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int distance = 1; distance < kSelectThreads; distance *= 2) {
    const int64_t before = int(threadIdx.x) >= distance ? shared[threadIdx.x - distance] : 0;
    __syncthreads();
    shared[threadIdx.x] += before;
    __syncthreads();
  }
  return shared[threadIdx.x];
}

}  // namespace warpmerge
