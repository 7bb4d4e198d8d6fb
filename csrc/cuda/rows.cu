// Sums and largest values of rows, in the order of ops/rows.h: blocks of rows first, then the blocks of each row.
#include "../ops/rows.h"

#include <math.h>

#include "warps.h"

namespace warpmerge {
namespace {

constexpr int kRowThreads = 256;
constexpr int kPerThread = 8;  // neighbouring lanes of a thread

struct RowFold {
  bool largest;

  WM_METHOD double operator()(double a, double b) const { return !largest ? a + b : b > a ? b : a; }
  WM_METHOD double neutral() const { return largest ? -double(INFINITY) : 0.0; }
};

// Blocks of rows that begin before flat index `flat` of a tensor.
WM_FN int64_t row_blocks_before(int64_t flat, int64_t columns) {
  const int64_t row = flat / columns;
  return row * blocks_of_row(columns) + (flat - row * columns + kBlock - 1) / kBlock;
}

// The blocks of rows that begin in one chunk, as many threads to each as its lanes ask for.
template <class T>
__global__ void __launch_bounds__(kRowThreads) fold_row_blocks(WM_PARAM Table table, bool largest, double* partials) {
  const RowFold fold{largest};
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int64_t first = chunk.place[kPlaceFirst], columns = table.words[chunk.segment], blocks = blocks_of_row(columns);
  const int64_t begin = row_blocks_before(first + chunk.begin, columns);
  const int64_t end = row_blocks_before(first + chunk.begin + chunk.count, columns);
  const int lanes = lanes_of(columns), threads = lanes > kPerThread ? lanes / kPerThread : 1;
  const int group = int(threadIdx.x) / threads, lane = int(threadIdx.x) % threads * kPerThread;
  for (int64_t start = begin; start < end; start += kRowThreads / threads) {
    const int64_t number = start + group < end ? start + group : end - 1;  // all take part in shuffles
    const int64_t row = number / blocks, from = (number - row * blocks) * kBlock;
    const int length = int(columns - from < kBlock ? columns - from : kBlock);
    const int64_t in_segment = row * columns + from - first;
    WM_ROLLED
    for (int v = 0; v < table.models; ++v) {
      const T* values = reinterpret_cast<const T*>(address(chunk.place, kPlaceInputs + v)) + in_segment;
      double folded[kPerThread];
      WM_UNROLL
      for (int e = 0; e < kPerThread; ++e) folded[e] = fold.neutral();
      WM_ROLLED
      for (int at = lane; at < length; at += kLanes) {
        WM_UNROLL
        for (int e = 0; e < kPerThread; ++e)
          if (at + e < length) folded[e] = fold(folded[e], double(values[at + e]));
      }
      WM_UNROLL
      for (int width = kPerThread / 2; width > 0; width /= 2) {
        WM_UNROLL
        for (int e = 0; e < width; ++e) folded[e] = fold(folded[2 * e], folded[2 * e + 1]);
      }
      double total = folded[0];
      WM_ROLLED
      for (int distance = 1; distance < threads; distance *= 2)
        total = fold(total, __shfl_xor_sync(kWholeWarp, total, distance));
      if (lane == 0 && start + group < end)
        partials[(chunk.place[kPlaceBlock] + number) * table.models + v] = total + 0.0;
    }
  }
}

// A thread for each row and value.
__global__ void __launch_bounds__(kRowThreads) fold_rows(double* partials, const int64_t* spans, int64_t slots,
                                                         int64_t rows, int models, bool largest, double* result) {
  const RowFold fold{largest};
  const int64_t number = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (number >= rows * models) return;
  const int64_t row = number / models;
  int64_t low = 0, high = slots - 1;  // the last slot whose first row is not behind this one, of those that have rows
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (spans[4 * middle] <= row)
      low = middle;
    else
      high = middle - 1;
  }
  const int64_t* span = spans + 4 * low;
  const int64_t blocks = span[3];
  double* mine = partials + (span[2] + (row - span[0]) * blocks) * models + number % models;
  for (int64_t count = blocks; count > 1; count = (count + 1) / 2)
    for (int64_t i = 0; 2 * i < count; ++i) {
      const double a = mine[2 * i * models];
      mine[i * models] = 2 * i + 1 < count ? fold(a, mine[(2 * i + 1) * models]) : a;
    }
  result[number] = mine[0];
}

}  // namespace

void rows(cudaStream_t stream, const Launch& work, bool largest, double* partials) {
  const Table table = make_table(work, 0, nullptr);
  launch("rows", work.wide ? fold_row_blocks<double> : fold_row_blocks<float>, work.chunks, kRowThreads, stream, table,
         largest, partials);
}

void row_totals(cudaStream_t stream, double* partials, const int64_t* spans, int64_t slots, int64_t rows, int models,
                bool largest, double* result) {
  launch("row_totals", fold_rows, (rows * models + kRowThreads - 1) / kRowThreads, kRowThreads, stream, partials, spans,
         slots, rows, models, largest, result);
}

}  // namespace warpmerge
