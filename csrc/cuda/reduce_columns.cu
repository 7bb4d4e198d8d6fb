// Folds over the columns of a formula's values: for each column a sum, a sum of products, or the largest value, in
// float64.
//
// This is `Reduce` over columns (python/warpmerge/requests.py); csrc/ops/reduce.h defines the order. A thread owns one
// column of a block of rows and goes down it. The next four rows are loaded while four earlier ones are added.
// Neighbouring threads read neighbouring columns. Then one thread for each result folds the blocks of its column.
// Values are read in pairs (value_pairs.h). If a launch ends within a block, the next launch continues from the
// partials, so a tensor can be folded tile by tile. In exchange launches that share a block must run in order, and the
// partials of all blocks are in memory at once.
#include <math.h>

#include "value_pairs.h"

namespace warpmerge {
namespace {

constexpr int kColumnThreads = 128;
static_assert(kColumnThreads == kColumnTile);

// Adds one row's term to the result so far of a column. Unless the term is a product, a and b are the same value.
template <class T, Term kTerm>
WM_DEVICE double add_term(double found, double a, double b) {
  if constexpr (kTerm == Term::product)
    return add_product<T>(found, a, b);
  else if constexpr (kTerm == Term::value)
    return found + a;
  else
    return a > found ? a : found;
}

// The rows of one block that lie in the segment, a column for each thread. A block that began in an earlier launch is
// continued.
template <class T, Term kTerm>
__global__ void __launch_bounds__(kColumnThreads)
    fold_columns(WM_PARAM Table table, const int64_t* value_pairs, int number, int sums, double* partials) {
  constexpr int kAtOnce = 4;  // rows that are loaded while as many earlier ones are added
  const int64_t program = blockIdx.x / unsigned(number);
  const ValuePair pair = value_pair_of(value_pairs, int(blockIdx.x % unsigned(number)));
  const int64_t segment = table.chunk_map[program];
  const Chunk chunk{segment_row_of(table, segment), segment, 0, 0};
  const int64_t columns = table.words[segment * kColumnWords], each = table.words[segment * kColumnWords + 1];
  const int64_t tiles = (columns + kColumnTile - 1) / kColumnTile, tile = program - chunk.segment_row[kSegmentChunk];
  const int64_t column = tile % tiles * kColumnTile + threadIdx.x;
  if (column >= columns) return;
  const int64_t first = chunk.segment_row[kSegmentFirst] / columns,
                end = first + chunk.segment_row[kSegmentCount] / columns;
  const int64_t block = first / each + tile / tiles;
  const int64_t from = block * each > first ? block * each : first;
  const int64_t rows = ((block + 1) * each < end ? (block + 1) * each : end) - from;
  const T* a = values_of<T>(chunk, pair.a) + (from - first) * columns + column;
  const T* b = values_of<T>(chunk, pair.b) + (from - first) * columns + column;
  double* const target = partials + chunk.segment_row[kSegmentBlock] + block * sums * columns + column;
  const double begin = kTerm == Term::largest ? -double(INFINITY) : 0.0;
  double found[3] = {begin, begin, begin};
  if (from > block * each) {
    WM_UNROLL
    for (int p = 0; p < 3; ++p)
      if (pair.sum[p] >= 0) found[p] = target[pair.sum[p] * columns];
  }
  const auto add = [&](double x, double y) {
    if (pair.sum[0] >= 0) found[0] = add_term<T, kTerm>(found[0], x, x);
    if (pair.sum[1] >= 0) found[1] = add_term<T, kTerm>(found[1], x, y);
    if (pair.sum[2] >= 0) found[2] = add_term<T, kTerm>(found[2], y, y);
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
    for (int r = 0; r < kAtOnce; ++r)
      if (kTerm != Term::largest || row + r < rows) add(double(x[r]), double(y[r]));
    WM_UNROLL
    for (int r = 0; r < kAtOnce; ++r) x[r] = next_x[r], y[r] = next_y[r];
  }
  WM_UNROLL
  for (int p = 0; p < 3; ++p)
    if (pair.sum[p] >= 0) target[pair.sum[p] * columns] = found[p];
}

// A thread for each column and term.
__global__ void __launch_bounds__(kColumnThreads)
    fold_column_blocks(double* partials, const int64_t* ranges, int64_t tensors, int64_t sums, bool largest,
                       double* result) {
  const int64_t number = int64_t(blockIdx.x) * kColumnThreads + threadIdx.x;
  if (number >= sums) return;
  const int64_t* range = range_of(ranges, tensors, number);
  double* mine = partials + range[2] + (number - range[0]);
  result[number] = largest ? fold_blocks<Larger>(mine, range[3], range[1]) : fold_blocks<Add>(mine, range[3], range[1]);
}

using ColumnKernel = void (*)(Table, const int64_t*, int, int, double*);

template <class T>
ColumnKernel column_kernel(Term term) {
  return term == Term::product ? fold_columns<T, Term::product>
         : term == Term::value ? fold_columns<T, Term::value>
                               : fold_columns<T, Term::largest>;
}

}  // namespace

void column_terms(cudaStream_t stream, const KernelLaunch& work, const int64_t* value_pairs, int number, int sums,
                  int term, double* partials) {
  const Table table = make_table(work, 0, nullptr);
  const ColumnKernel kernel = work.fp64 ? column_kernel<double>(Term(term)) : column_kernel<float>(Term(term));
  launch("column_terms", kernel, work.chunks * number, kColumnThreads, stream, table, value_pairs, number, sums,
         partials);
}

void column_totals(cudaStream_t stream, double* partials, const int64_t* ranges, int64_t tensors, int64_t sums,
                   bool largest, double* result) {
  launch("column_totals", fold_column_blocks, (sums + kColumnThreads - 1) / kColumnThreads, kColumnThreads, stream,
         partials, ranges, tensors, sums, largest, result);
}

}  // namespace warpmerge
