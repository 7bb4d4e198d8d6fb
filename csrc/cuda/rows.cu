// Sums and largest values of rows, in the order of ops/rows.h: blocks of rows first, then the blocks of each row.
#include <math.h>

#include "row_blocks.h"

namespace warpmerge {
namespace {

constexpr int kRowThreads = 256;

struct RowFold {
  bool largest;

  WM_METHOD double operator()(double a, double b) const { return !largest ? a + b : b > a ? b : a; }
  WM_METHOD double neutral() const { return largest ? -double(INFINITY) : 0.0; }
};

// The blocks of rows that begin in one chunk.
template <class T>
__global__ void __launch_bounds__(kRowThreads) fold_row_blocks(WM_PARAM Table table, bool largest, double* partials) {
  const RowFold fold{largest};
  const Chunk chunk = chunk_of(table, blockIdx.x);
  walk_row_blocks<kRowThreads>(chunk, table.words[chunk.segment], [&](const RowBlock& block) {
    WM_ROLLED
    for (int v = 0; v < table.models; ++v) {
      const T* values = reinterpret_cast<const T*>(address(chunk.place, kPlaceInputs + v)) + block.begin;
      double folded[kPerThread];
      WM_UNROLL
      for (int e = 0; e < kPerThread; ++e) folded[e] = fold.neutral();
      WM_ROLLED
      for (int at = block.lane; at < block.length; at += kLanes) {
        double x[kPerThread];
        load_lanes(values, at, block.length, fold.neutral(), x);
        WM_UNROLL
        for (int e = 0; e < kPerThread; ++e) folded[e] = fold(folded[e], x[e]);
      }
      const double total = fold_lanes(folded, block.threads, fold);
      if (block.lane == 0 && block.exists)
        partials[(chunk.place[kPlaceBlock] + block.number) * table.models + v] = total + 0.0;
    }
  });
}

// A thread for each row and value.
__global__ void __launch_bounds__(kRowThreads) fold_rows(double* partials, const int64_t* spans, int64_t slots,
                                                         int64_t rows, int models, bool largest, double* result) {
  const RowFold fold{largest};
  const int64_t number = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (number >= rows * models) return;
  const int64_t row = number / models;
  const int64_t* span = span_of(spans, slots, row);
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
  launch("rows", work.fp64 ? fold_row_blocks<double> : fold_row_blocks<float>, work.chunks, kRowThreads, stream, table,
         largest, partials);
}

void row_totals(cudaStream_t stream, double* partials, const int64_t* spans, int64_t slots, int64_t rows, int models,
                bool largest, double* result) {
  launch("row_totals", fold_rows, (rows * models + kRowThreads - 1) / kRowThreads, kRowThreads, stream, partials, spans,
         slots, rows, models, largest, result);
}

}  // namespace warpmerge
