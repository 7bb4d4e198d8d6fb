// Ties of a selection (selection.h): the flat index up to which elements that equal the threshold are kept.
//
// Ties are kept in the order of their index (docs/numerics.md, "Trimming"), so the place of the last one to keep
// decides all. `select_ties` counts the ties in each block of 4096 elements. `select_locate` finds the block of that
// last tie by adding up the counts. `select_position` reads this one block again and finds the tie's index. So no list
// of ties is stored. In exchange the tensors are swept once more; that sweep skips a model that keeps all its ties.
#include "selection.h"

namespace warpmerge {
namespace {

// A warp per block of the reduction order: for each model, how many keys equal the selected one.
template <class Pack>
__global__ void __launch_bounds__(kMeasureThreads, 5)
    count_ties(WM_PARAM Table table, const int64_t* state, int32_t* tie_counts) {
  using Key = Bits<typename Pack::T>;
  constexpr int kTogether = kPacksTogether<Pack>;
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  if (warp * kBlock >= chunk.count) return;
  const int64_t row = chunk.segment_row[kSegmentBlock] + chunk.begin / kBlock + warp;
  const ChunkSource from = base_of(table, chunk);
  WM_ROLLED
  for (int k = 0; k < table.models; ++k) {
    const int64_t* mine = state_of(state, table, chunk, k);
    if (mine[kSelectStatus] != kKeyKnown) continue;
    const Key key = Key(mine[kSelectLow]);
    const ChunkSource input = input_of(table, chunk, k);
    int ties = 0;
    WM_ROLLED
    for (int start = 0; start < kRows; start += kTogether) {
      Pack x[kTogether], base[kTogether];
      WM_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        const int at = warp * kBlock + (start + r) * kLanes + lane * kPack;
        load_with_base(table, input, from, at, left_in(chunk, at, kPack), x[r], base[r]);
      }
      WM_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        const int n = left_in(chunk, warp * kBlock + (start + r) * kLanes + lane * kPack, kPack);
        Key keys[kPack];
        keys_of(table, chunk, k, x[r], base[r], false, keys);
        WM_UNROLL
        for (int e = 0; e < kPack; ++e) ties += e < n && keys[e] == key;
      }
    }
    ties = sum_of_warp(ties);
    if (lane == 0) tie_counts[row * table.models + k] = ties;
  }
}

// A thread block per tensor and model: the block that holds the last tie to keep.
__global__ void __launch_bounds__(kSelectThreads)
    locate_tie(int64_t* state, const int32_t* tie_counts, const int64_t* ranges, int models) {
  constexpr int kPerThread = 8;
  __shared__ int64_t shared[kSelectThreads];
  const int64_t tensor = blockIdx.x / unsigned(models);
  const int k = int(blockIdx.x % unsigned(models));
  int64_t* mine = state + int64_t(blockIdx.x) * kSelectColumns;
  if (mine[kSelectStatus] != kKeyKnown) return;
  const int64_t rank = mine[kSelectTarget] - mine[kSelectAbove], rows = ranges[2 * tensor + 1];
  const int32_t* counts = tie_counts + ranges[2 * tensor] * models + k;
  int64_t before = 0;
  for (int64_t first = 0; first < rows && before < rank; first += kSelectThreads * kPerThread) {
    int64_t ties[kPerThread], sum = 0;
    WM_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      const int64_t row = first + int64_t(threadIdx.x) * kPerThread + j;
      sum += ties[j] = row < rows ? counts[row * models] : 0;
    }
    const int64_t until = before + inclusive_scan(sum, shared);
    int64_t passed = until - sum;
    if (passed < rank && rank <= until) {
      WM_UNROLL
      for (int j = 0; j < kPerThread; ++j) {
        if (passed < rank && rank <= passed + ties[j])
          mine[kSelectTie] = (first + int64_t(threadIdx.x) * kPerThread + j) << kTieRankBits | (rank - passed);
        passed += ties[j];
      }
    }
    before += shared[kSelectThreads - 1];
  }
}

// A warp per segment and model: the index of that tie.
template <class T>
__global__ void __launch_bounds__(kWarp) find_tie(WM_PARAM Table table, int64_t* state) {
  using Pack = Widened<T, kPack>;
  const int k = int(blockIdx.x % unsigned(table.models)), lane = int(threadIdx.x);
  Chunk chunk = whole_segment(table, blockIdx.x / unsigned(table.models));
  int64_t* mine = state_of(state, table, chunk, k);
  const int64_t count = chunk.segment_row[kSegmentCount], first = chunk.segment_row[kSegmentFirst];
  const int64_t begin = (mine[kSelectTie] >> kTieRankBits) * kBlock - first;
  if (mine[kSelectStatus] != kKeyKnown || begin < 0 || begin >= count) return;
  const Bits<T> key = Bits<T>(mine[kSelectLow]);
  const int rank = int(mine[kSelectTie] & ((int64_t(1) << kTieRankBits) - 1));
  chunk.begin = begin;
  chunk.count = int(count - begin < kBlock ? count - begin : kBlock);
  int passed = 0;
  WM_ROLLED
  for (int r = 0; r < kRows; ++r) {
    const int at = r * kLanes + lane * kPack, n = left_in(chunk, at, kPack);
    Pack x, base;
    load_with_base(table, input_of(table, chunk, k), base_of(table, chunk), at, n, x, base);
    Bits<T> keys[kPack];
    keys_of(table, chunk, k, x, base, false, keys);
    int before = passed;
    WM_UNROLL
    for (int e = 0; e < kPack; ++e) {
      const unsigned tied = __ballot_sync(kWholeWarp, e < n && keys[e] == key);
      before += __popc(tied & ((1u << lane) - 1));
      passed += __popc(tied);
    }
    WM_UNROLL
    for (int e = 0; e < kPack; ++e)
      if (e < n && keys[e] == key && ++before == rank) mine[kSelectTieEnd] = first + begin + at + e + 1;
  }
}

}  // namespace

void select_ties(cudaStream_t stream, const KernelLaunch& work, const int64_t* state, int32_t* tie_counts) {
  const Table table = make_table(work, 0, nullptr);
  using Kernel = void (*)(Table, const int64_t*, int32_t*);
  const Kernel kernel = with_pack<kPack>(work, [](auto pack) -> Kernel { return count_ties<decltype(pack)>; });
  launch("select_ties", kernel, work.chunks, kMeasureThreads, stream, table, state, tie_counts);
}

void select_locate(cudaStream_t stream, int64_t* state, const int32_t* tie_counts, const int64_t* ranges,
                   int64_t tensors, int models) {
  launch("select_locate", locate_tie, tensors * models, kSelectThreads, stream, state, tie_counts, ranges, models);
}

void select_position(cudaStream_t stream, const KernelLaunch& work, int64_t* state) {
  const Table table = make_table(work, 0, nullptr);
  launch("select_position", work.fp64 ? find_tie<double> : find_tie<float>, work.segments * work.models, kWarp, stream,
         table, state);
}

}  // namespace warpmerge
