// Ranks of magnitudes within rows, for expressions that use them (docs/numerics.md, "Formulas").
//
// A thread block takes the rows that begin in one chunk. A short row is counted: an element's rank is the number of
// elements of its row that come before it. Counting takes the square of the length in comparisons, so longer rows are
// sorted: a radix sort of column numbers by eight bits of their keys at a time. It is stable, so equal keys stay in the
// order of their columns. The sort works in shared memory if the row fits, else in global memory. There the memory of
// the result holds the keys until the ranks are written. In exchange the column numbers of a long row take eight bytes
// of scratch for each element.
#include "../ops/formula.h"

#include "selection.h"

namespace warpmerge {
namespace {

constexpr int kRankThreads = 256;
constexpr int kRankWarps = kRankThreads / kWarp;
constexpr int kCounted = 128;  // columns up to which counting is cheaper
constexpr int kCountedTile = 2048;
constexpr int kDigits = 256;  // one for each thread
static_assert(kDigits == kRankThreads && kRankThreads == kSelectThreads);

// Rows that begin in a chunk, of a segment of whole rows.
struct RowRange {
  int64_t first, end;
};

WM_DEVICE RowRange rows_of(const Chunk& chunk, int64_t columns) {
  return {(chunk.begin + columns - 1) / columns, (chunk.begin + chunk.count + columns - 1) / columns};
}

// The key of the element `at` of the row that begins where `row` does.
template <class T>
WM_DEVICE Bits<T> key_at(const Table& table, const Chunk& row, int input, int64_t at) {
  Chunk chunk = row;
  chunk.begin += at;
  Widened<T, 1> x, base;
  x.template load<false>(input_of(table, chunk, input), 0, 1);
  base.clear();
  if (table.has_base) base.template load<false>(base_of(table, chunk), 0, 1);
  return canonical_key(settle_nonfinite(x.get(0) - base.get(0), table.policy));
}

struct RankWords {
  int row, ordinal;  // length of a row of `words`, and the column that holds the address
};

// Rows of up to kCounted elements.
template <class T>
WM_DEVICE void count_rows(const Table& table, const Chunk& chunk, const int64_t* mine, RankWords shape, int input,
                          Bits<T> (&keys)[kCountedTile]) {
  const int columns = int(mine[kWordColumns]);
  T* result = reinterpret_cast<T*>(mine[shape.ordinal]);
  const RowRange range = rows_of(chunk, columns);
  const int together = kCountedTile / columns;
  for (int64_t row = range.first; row < range.end; row += together) {
    const int rows = int(range.end - row < together ? range.end - row : together), count = rows * columns;
    const Chunk tile{chunk.segment_row, chunk.segment, row * columns, count};
    __syncthreads();  // all threads are done with the last tile
    for (int i = int(threadIdx.x); i < count; i += kRankThreads) keys[i] = key_at<T>(table, tile, input, i);
    __syncthreads();
    for (int i = int(threadIdx.x); i < count; i += kRankThreads) {
      const Bits<T> key = keys[i];
      const int first = i / columns * columns;
      int rank = 0;
      for (int j = first; j < i; ++j) rank += keys[j] <= key;
      for (int j = i + 1; j < first + columns; ++j) rank += keys[j] < key;
      result[tile.begin + i] = T(rank);
    }
  }
}

// Keys of a row, and two arrays of its columns' numbers in the order of the digits so far.
template <class Key, class Index>
struct RowOrder {
  Key* keys;
  Index *from, *to;
  int64_t columns;
  bool ordered;  // `from` holds the order; else the order is that of the columns

  WM_METHOD Index at(int64_t i) const { return ordered ? from[i] : Index(i); }
};

// Calls body(column, digit, lanes with the same digit, all active lanes) for a warp's share of a row, in order.
template <class Key, class Index, class Body>
WM_DEVICE void walk_share(const RowOrder<Key, Index>& order, int shift, Body&& body) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int64_t share = (order.columns + kRankThreads - 1) / kRankThreads * kWarp;
  const int64_t begin = warp * share, left = order.columns - begin, count = left < share ? left : share;
  for (int64_t at = 0; at < count; at += kWarp) {
    const unsigned active = count - at < kWarp ? (1u << (count - at)) - 1 : kWholeWarp;
    if (active >> lane & 1) {
      const Index column = order.at(begin + at + lane);
      const unsigned digit = unsigned(order.keys[column] >> shift) & (kDigits - 1);
      const unsigned same = __match_any_sync(active, digit);
      body(column, digit, same, active);
      __syncwarp(active);
    }
  }
}

// Sorts by one digit: a stable counting sort. If all keys have the same digit, nothing moves.
template <class Key, class Index>
WM_DEVICE void sort_digit(RowOrder<Key, Index>& order, int shift, unsigned (&counts)[kRankWarps][kDigits],
                          int64_t* scan) {
  const int digit = int(threadIdx.x), warp = digit / kWarp;
  const unsigned lower = (1u << digit % kWarp) - 1;  // lanes
  WM_UNROLL
  for (int w = 0; w < kRankWarps; ++w) counts[w][digit] = 0;
  __syncthreads();
  walk_share(order, shift, [&](Index, unsigned of, unsigned same, unsigned) {
    if (!(same & lower)) counts[warp][of] += unsigned(__popc(same));
  });
  __syncthreads();
  unsigned total = 0;
  WM_UNROLL
  for (int w = 0; w < kRankWarps; ++w) total += counts[w][digit];
  if (__syncthreads_or(total == unsigned(order.columns))) return;
  unsigned next = unsigned(inclusive_scan(total, scan)) - total;
  WM_UNROLL
  for (int w = 0; w < kRankWarps; ++w) {
    const unsigned found = counts[w][digit];
    counts[w][digit] = next;
    next += found;
  }
  __syncthreads();
  walk_share(order, shift, [&](Index column, unsigned of, unsigned same, unsigned active) {
    const unsigned first = counts[warp][of];
    __syncwarp(active);
    if (!(same & lower)) counts[warp][of] = first + unsigned(__popc(same));
    order.to[first + unsigned(__popc(same & lower))] = column;
  });
  __syncthreads();
  Index* const sorted = order.to;
  order.to = order.from;
  order.from = sorted;
  order.ordered = true;
}

template <class T, class Index, bool kShared>
WM_DEVICE void sort_rows(const Table& table, const Chunk& chunk, const int64_t* mine, RankWords shape, int input,
                         unsigned (&counts)[kRankWarps][kDigits], int64_t* scan) {
  using Key = Bits<T>;
  const int64_t columns = mine[kWordColumns];
  const RowRange range = rows_of(chunk, columns);
  for (int64_t row = range.first; row < range.end; ++row) {
    const Chunk whole{chunk.segment_row, chunk.segment, row * columns, 0};
    T* result = reinterpret_cast<T*>(mine[shape.ordinal]) + whole.begin;
    RowOrder<Key, Index> order{};
    if constexpr (kShared) {
      order.keys = reinterpret_cast<Key*>(dynamic_shared());
      order.from = reinterpret_cast<Index*>(order.keys + columns);
    } else {
      order.keys = reinterpret_cast<Key*>(result);
      order.from = reinterpret_cast<Index*>(mine[kWordOrder]) + 2 * whole.begin;
    }
    order.to = order.from + columns;
    order.columns = columns;
    __syncthreads();  // all threads are done with the last row
    for (int64_t i = threadIdx.x; i < columns; i += kRankThreads) order.keys[i] = key_at<T>(table, whole, input, i);
    __syncthreads();
    WM_ROLLED
    for (int shift = 0; shift < 8 * int(sizeof(Key)); shift += 8) sort_digit(order, shift, counts, scan);
    __syncthreads();  // all threads have read the keys, which the ranks may overwrite
    for (int64_t i = threadIdx.x; i < columns; i += kRankThreads) result[order.at(i)] = T(i);
  }
}

// Rows of up to `most` elements, or the longer ones.
template <class T, bool kLong>
__global__ void __launch_bounds__(kRankThreads, 3)
    rank_rows(WM_PARAM Table table, RankWords shape, int input, int64_t most) {
  __shared__ unsigned counts[kRankWarps][kDigits];
  __shared__ int64_t scan[kRankThreads];
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int64_t* mine = table.words + chunk.segment * shape.row;
  const int64_t columns = mine[kWordColumns];
  if ((columns > most) != kLong) return;
  if constexpr (kLong) {
    sort_rows<T, uint32_t, false>(table, chunk, mine, shape, input, counts, scan);
  } else if (columns > kCounted) {
    sort_rows<T, uint16_t, true>(table, chunk, mine, shape, input, counts, scan);
  } else {
    __shared__ Bits<T> keys[kCountedTile];
    count_rows<T>(table, chunk, mine, shape, input, keys);
  }
}

template <class T>
void queue_ranks(cudaStream_t stream, const Table& table, RankWords shape, int input, int64_t longest, int64_t most) {
  const int64_t sorted = longest < most ? longest : most;
  const int64_t shared = sorted > kCounted ? sorted * int64_t(sizeof(Bits<T>) + 2 * sizeof(uint16_t)) : 0;
  launch_with(shared, "ranks", rank_rows<T, false>, table.chunks, kRankThreads, stream, table, shape, input, most);
  if (longest > most)
    launch("ranks", rank_rows<T, true>, table.chunks, kRankThreads, stream, table, shape, input, most);
}

}  // namespace

void ranks(cudaStream_t stream, const KernelLaunch& work, const KernelProgram& program, int input, int ordinal,
           int64_t longest) {
  if (input < 0 || input >= work.models || ordinal < 0 || ordinal >= program.ranks || longest > UINT32_MAX)
    throw std::runtime_error("ranks: the launch has no such input, or its rows are too long");
  const Table table = make_table(work, 0, nullptr);
  const int before = kWordRest + program.keys + program.vectors;
  const RankWords shape{before + program.ranks, before + ordinal};
  if (work.fp64)
    queue_ranks<double>(stream, table, shape, input, longest, kRankShared64);
  else
    queue_ranks<float>(stream, table, shape, input, longest, kRankShared32);
}

}  // namespace warpmerge
