// Folds over the rows of a formula's values: for each row a sum, a sum of products, or the largest value, in float64.
//
// This is `Reduce` over rows (python/warpmerge/requests.py); csrc/ops/reduce.h defines the order. Rows are cut into
// blocks of up to 4096 elements. A block gets as many threads as its lanes ask for (row_blocks.h), so short rows leave
// few threads idle. Then one thread for each result folds the blocks of its row. Products read values in pairs
// (value_pairs.h). In exchange the partials of all blocks are in memory at once.
#include <math.h>

#include "value_pairs.h"

namespace warpmerge {
namespace {

constexpr int kRowThreads = 256;
constexpr int kProductThreads = 128;  // four warps: a chunk is four blocks of long rows

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
      const T* values = reinterpret_cast<const T*>(address(chunk.segment_row, kSegmentInputs + v)) + block.begin;
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
        partials[(chunk.segment_row[kSegmentBlock] + block.number) * table.models + v] = total + 0.0;
    }
  });
}

// The same for products.
template <class T>
__global__ void __launch_bounds__(kProductThreads)
    multiply_rows(WM_PARAM Table table, const int64_t* value_pairs, int number, int sums, double* partials) {
  const Chunk chunk = chunk_of(table, blockIdx.x / unsigned(number));
  const ValuePair pair = value_pair_of(value_pairs, int(blockIdx.x % unsigned(number)));
  walk_row_blocks<kProductThreads>(chunk, table.words[chunk.segment], [&](const RowBlock& block) {
    const T* a = values_of<T>(chunk, pair.a) + block.begin;
    const T* b = values_of<T>(chunk, pair.b) + block.begin;
    double found[3][kPerThread] = {};
    WM_ROLLED
    for (int at = block.lane; at < block.length; at += kLanes) {
      double x[kPerThread], y[kPerThread];
      load_lanes(a, at, block.length, 0.0, x);
      load_lanes(b, at, block.length, 0.0, y);
      WM_UNROLL
      for (int e = 0; e < kPerThread; ++e) {
        if (pair.sum[0] >= 0) found[0][e] = add_product<T>(found[0][e], x[e], x[e]);
        if (pair.sum[1] >= 0) found[1][e] = add_product<T>(found[1][e], x[e], y[e]);
        if (pair.sum[2] >= 0) found[2][e] = add_product<T>(found[2][e], y[e], y[e]);
      }
    }
    WM_UNROLL
    for (int p = 0; p < 3; ++p) {
      const double total = fold_lanes(found[p], block.threads, RowFold{false});
      if (pair.sum[p] >= 0 && block.lane == 0 && block.exists)
        partials[(chunk.segment_row[kSegmentBlock] + block.number) * sums + pair.sum[p]] = total;
    }
  });
}

// A thread for each row and value.
__global__ void __launch_bounds__(kRowThreads) fold_rows(double* partials, const int64_t* ranges, int64_t tensors,
                                                         int64_t rows, int models, bool largest, double* result) {
  const RowFold fold{largest};
  const int64_t number = int64_t(blockIdx.x) * kRowThreads + threadIdx.x;
  if (number >= rows * models) return;
  const int64_t row = number / models;
  const int64_t* range = range_of(ranges, tensors, row);
  const int64_t blocks = range[3];
  double* mine = partials + (range[2] + (row - range[0]) * blocks) * models + number % models;
  for (int64_t count = blocks; count > 1; count = (count + 1) / 2)
    for (int64_t i = 0; 2 * i < count; ++i) {
      const double a = mine[2 * i * models];
      mine[i * models] = 2 * i + 1 < count ? fold(a, mine[(2 * i + 1) * models]) : a;
    }
  result[number] = mine[0];
}

}  // namespace

void row_values(cudaStream_t stream, const KernelLaunch& work, bool largest, double* partials) {
  const Table table = make_table(work, 0, nullptr);
  launch("row_values", work.fp64 ? fold_row_blocks<double> : fold_row_blocks<float>, work.chunks, kRowThreads, stream,
         table, largest, partials);
}

void row_products(cudaStream_t stream, const KernelLaunch& work, const int64_t* value_pairs, int number, int sums,
                  double* partials) {
  const Table table = make_table(work, 0, nullptr);
  launch("row_products", work.fp64 ? multiply_rows<double> : multiply_rows<float>, work.chunks * number,
         kProductThreads, stream, table, value_pairs, number, sums, partials);
}

void row_totals(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int64_t rows, int models,
                bool largest, double* result) {
  launch("row_totals", fold_rows, (rows * models + kRowThreads - 1) / kRowThreads, kRowThreads, stream, partials,
         ranges, tensors, rows, models, largest, result);
}

}  // namespace warpmerge
