// The last step of a sum over a tensor: the sums of its blocks, added pairwise in float64.
//
// csrc/ops/reduce.h defines the order. A thread block takes one tensor and one column of partials. It adds runs of 2048
// neighbouring partials. A run is a whole subtree, so the sums of runs are again a list to add pairwise. They replace
// the partials at the front, and the next round adds them, until one is left. A partial past the end counts as +0; that
// changes no sum, because none is -0. One thread block adds a whole column, so thread blocks never wait for each other.
// In exchange a large tensor has no more threads than a small one; but it has only one partial for 4096 elements.
#include "../ops/reduce.h"

#include <math.h>

#include "warps.h"

namespace warpmerge {
namespace {

constexpr int kReduceThreads = 256;
constexpr int kPerThread = 8;
constexpr int kRun = kReduceThreads * kPerThread;  // partials of one step: an aligned subtree

// The tree over the values of all threads; a value is the sum of kPerThread neighbours. All threads get the sum.
WM_DEVICE double sum_threads(double value, double* shared) {
  constexpr int kWarps = kReduceThreads / kWarp;
  WM_UNROLL
  for (int distance = 1; distance < kWarp; distance *= 2) value = value + __shfl_xor_sync(kWholeWarp, value, distance);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  double values[kWarps];
  WM_UNROLL
  for (int w = 0; w < kWarps; ++w) values[w] = shared[w];
  WM_UNROLL
  for (int width = kWarps / 2; width > 0; width /= 2) {
    WM_UNROLL
    for (int w = 0; w < width; ++w) values[w] = values[2 * w] + values[2 * w + 1];
  }
  return values[0];
}

// A thread block per tensor and column. Each round replaces the partials by the sums of their runs, at the front.
__global__ void __launch_bounds__(kReduceThreads)
    reduce_columns(double* partials, const int64_t* ranges, int width, double* result) {
  __shared__ double shared[kReduceThreads / kWarp];
  const int64_t tensor = blockIdx.x / unsigned(width);
  const int column = int(blockIdx.x % unsigned(width));
  double* rows = partials + ranges[2 * tensor] * width + column;
  int64_t count = ranges[2 * tensor + 1];
  double total = 0.0;
  while (count > 0) {
    const int64_t runs = (count + kRun - 1) / kRun;
    for (int64_t run = 0; run < runs; ++run) {
      const int64_t first = run * kRun + int64_t(threadIdx.x) * kPerThread;
      double values[kPerThread];
      WM_UNROLL
      for (int j = 0; j < kPerThread; ++j) values[j] = first + j < count ? rows[(first + j) * width] : 0.0;
      WM_UNROLL
      for (int half = kPerThread / 2; half > 0; half /= 2) {
        WM_UNROLL
        for (int j = 0; j < half; ++j) values[j] = values[2 * j] + values[2 * j + 1];
      }
      total = sum_threads(values[0], shared);
      // Safe after the barriers: all threads have read this run, and later runs lie further back.
      if (threadIdx.x == 0) rows[run * width] = total;
    }
    __syncthreads();
    count = runs > 1 ? runs : 0;
  }
  if (threadIdx.x == 0) result[tensor * width + column] = total;
}

}  // namespace

void reduce_blocks(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int width,
                   double* result) {
  launch("reduce_blocks", reduce_columns, tensors * width, kReduceThreads, stream, partials, ranges, width, result);
}

}  // namespace warpmerge
