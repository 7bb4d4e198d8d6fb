// Folds of rows, in the order of ops/reduce.h: the blocks of rows first, then the blocks of each row.
//
// As many threads work on a block as its lanes ask for, so that short rows leave none idle. Products are cut into duos:
// two values are read once for up to three products.
#include <math.h>

#include "duos.h"

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

// The same of products.
template <class T>
__global__ void __launch_bounds__(kProductThreads)
    multiply_rows(WM_PARAM Table table, const int64_t* duos, int number, int sums, double* partials) {
  const Chunk chunk = chunk_of(table, blockIdx.x / unsigned(number));
  const Duo duo = duo_of(duos, int(blockIdx.x % unsigned(number)));
  walk_row_blocks<kProductThreads>(chunk, table.words[chunk.segment], [&](const RowBlock& block) {
    const T* a = values_of<T>(chunk, duo.a) + block.begin;
    const T* b = values_of<T>(chunk, duo.b) + block.begin;
    double found[3][kPerThread] = {};
    WM_ROLLED
    for (int at = block.lane; at < block.length; at += kLanes) {
      double x[kPerThread], y[kPerThread];
      load_lanes(a, at, block.length, 0.0, x);
      load_lanes(b, at, block.length, 0.0, y);
      WM_UNROLL
      for (int e = 0; e < kPerThread; ++e) {
        if (duo.place[0] >= 0) found[0][e] = add_product<T>(found[0][e], x[e], x[e]);
        if (duo.place[1] >= 0) found[1][e] = add_product<T>(found[1][e], x[e], y[e]);
        if (duo.place[2] >= 0) found[2][e] = add_product<T>(found[2][e], y[e], y[e]);
      }
    }
    WM_UNROLL
    for (int p = 0; p < 3; ++p) {
      const double total = fold_lanes(found[p], block.threads, RowFold{false});
      if (duo.place[p] >= 0 && block.lane == 0 && block.exists)
        partials[(chunk.place[kPlaceBlock] + block.number) * sums + duo.place[p]] = total;
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

void row_values(cudaStream_t stream, const Launch& work, bool largest, double* partials) {
  const Table table = make_table(work, 0, nullptr);
  launch("row_values", work.fp64 ? fold_row_blocks<double> : fold_row_blocks<float>, work.chunks, kRowThreads, stream,
         table, largest, partials);
}

void row_products(cudaStream_t stream, const Launch& work, const int64_t* duos, int number, int sums,
                  double* partials) {
  const Table table = make_table(work, 0, nullptr);
  launch("row_products", work.fp64 ? multiply_rows<double> : multiply_rows<float>, work.chunks * number,
         kProductThreads, stream, table, duos, number, sums, partials);
}

void row_totals(cudaStream_t stream, double* partials, const int64_t* spans, int64_t slots, int64_t rows, int models,
                bool largest, double* result) {
  launch("row_totals", fold_rows, (rows * models + kRowThreads - 1) / kRowThreads, kRowThreads, stream, partials, spans,
         slots, rows, models, largest, result);
}

}  // namespace warpmerge
