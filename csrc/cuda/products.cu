// Sums of products of two values, per row or per column, in the orders of ops/products.h.
//
// Work is cut into duos: two values, read once, and those of their three products that are asked for.
#include "../ops/products.h"

#include <math.h>

#include "row_blocks.h"

namespace warpmerge {
namespace {

constexpr int kProductThreads = 128;  // four warps: a chunk is four blocks of long rows
static_assert(kProductThreads == kColumnTile);

// A product of two float32 is exact in float64: its sum is rounded once, fused or not.
template <class T>
WM_DEVICE double add_product(double sum, double a, double b) {
  if constexpr (sizeof(T) == 4)
    return fma(a, b, sum);
  else
    return sum + a * b;
}

struct Sum {
  WM_METHOD double operator()(double a, double b) const { return a + b; }
};

struct Duo {
  int64_t a, b;
  int64_t place[3];  // of the sums of a a, a b and b b; below 0: not asked for
};

WM_DEVICE Duo duo_of(const int64_t* duos, int number) {
  const int64_t* row = duos + int64_t(number) * kDuoColumns;
  return {row[0], row[1], {row[2], row[3], row[4]}};
}

template <class T>
WM_DEVICE const T* values_of(const Chunk& chunk, int64_t value) {
  return reinterpret_cast<const T*>(address(chunk.place, kPlaceInputs + int(value)));
}

// The blocks of rows that begin in one chunk.
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
      const double total = fold_lanes(found[p], block.threads, Sum{});
      if (duo.place[p] >= 0 && block.lane == 0 && block.exists)
        partials[(chunk.place[kPlaceBlock] + block.number) * sums + duo.place[p]] = total;
    }
  });
}

// The segment's rows of one block of a tensor's, a column for each thread. A block that began in an earlier launch is
// continued.
template <class T>
__global__ void __launch_bounds__(kProductThreads)
    multiply_columns(WM_PARAM Table table, const int64_t* duos, int number, int sums, double* partials) {
  constexpr int kAtOnce = 4;  // rows, whose loads are under way while as many earlier ones are added
  const int64_t program = blockIdx.x / unsigned(number);
  const Duo duo = duo_of(duos, int(blockIdx.x % unsigned(number)));
  const int64_t segment = table.chunk_map[program];
  const Chunk chunk{place_of(table, segment), segment, 0, 0};
  const int64_t columns = table.words[segment * kColumnWords], each = table.words[segment * kColumnWords + 1];
  const int64_t tiles = (columns + kColumnTile - 1) / kColumnTile, tile = program - chunk.place[kPlaceChunk];
  const int64_t column = tile % tiles * kColumnTile + threadIdx.x;
  if (column >= columns) return;
  const int64_t first = chunk.place[kPlaceFirst] / columns, end = first + chunk.place[kPlaceCount] / columns;
  const int64_t block = first / each + tile / tiles;
  const int64_t from = block * each > first ? block * each : first;
  const int64_t rows = ((block + 1) * each < end ? (block + 1) * each : end) - from;
  const T* a = values_of<T>(chunk, duo.a) + (from - first) * columns + column;
  const T* b = values_of<T>(chunk, duo.b) + (from - first) * columns + column;
  double* const target = partials + chunk.place[kPlaceBlock] + block * sums * columns + column;
  double found[3] = {};
  if (from > block * each) {
    WM_UNROLL
    for (int p = 0; p < 3; ++p)
      if (duo.place[p] >= 0) found[p] = target[duo.place[p] * columns];
  }
  const auto add = [&](double x, double y) {
    if (duo.place[0] >= 0) found[0] = add_product<T>(found[0], x, x);
    if (duo.place[1] >= 0) found[1] = add_product<T>(found[1], x, y);
    if (duo.place[2] >= 0) found[2] = add_product<T>(found[2], y, y);
  };
  const auto load = [&](int64_t row, T(&x)[kAtOnce], T(&y)[kAtOnce]) {
    WM_UNROLL
    for (int r = 0; r < kAtOnce; ++r) {
      x[r] = row + r < rows ? __ldg(a + (row + r) * columns) : T(0);
      y[r] = row + r < rows ? __ldg(b + (row + r) * columns) : T(0);
    }
  };
  T x[kAtOnce], y[kAtOnce];
  load(0, x, y);
  WM_ROLLED
  for (int64_t row = 0; row < rows; row += kAtOnce) {
    T next_x[kAtOnce], next_y[kAtOnce];
    load(row + kAtOnce, next_x, next_y);
    WM_UNROLL
    for (int r = 0; r < kAtOnce; ++r) add(double(x[r]), double(y[r]));
    WM_UNROLL
    for (int r = 0; r < kAtOnce; ++r) x[r] = next_x[r], y[r] = next_y[r];
  }
  WM_UNROLL
  for (int p = 0; p < 3; ++p)
    if (duo.place[p] >= 0) target[duo.place[p] * columns] = found[p];
}

// A thread for each column and pair.
__global__ void __launch_bounds__(kProductThreads)
    sum_columns(double* partials, const int64_t* spans, int64_t slots, int64_t sums, double* result) {
  const int64_t number = int64_t(blockIdx.x) * kProductThreads + threadIdx.x;
  if (number >= sums) return;
  const int64_t* span = span_of(spans, slots, number);
  result[number] = sum_blocks(partials + span[2] + (number - span[0]), span[3], span[1]);
}

}  // namespace

void products(cudaStream_t stream, const Launch& work, const int64_t* duos, int number, int sums, bool per_column,
              double* partials) {
  const Table table = make_table(work, 0, nullptr);
  const auto kernel = per_column  ? work.fp64 ? multiply_columns<double> : multiply_columns<float>
                      : work.fp64 ? multiply_rows<double>
                                  : multiply_rows<float>;
  launch("products", kernel, work.chunks * number, kProductThreads, stream, table, duos, number, sums, partials);
}

void column_totals(cudaStream_t stream, double* partials, const int64_t* spans, int64_t slots, int64_t sums,
                   double* result) {
  launch("column_totals", sum_columns, (sums + kProductThreads - 1) / kProductThreads, kProductThreads, stream,
         partials, spans, slots, sums, result);
}

}  // namespace warpmerge
