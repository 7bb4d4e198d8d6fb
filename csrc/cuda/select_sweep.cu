// A sweep that counts a tensor's keys in 2048 bins of the interval, and the step that shrinks the interval to one bin.
//
// It serves `KthLargest` (selection.h), and `Reduce` of kind `histogram`, where the counters are the result. Bins lie
// in shared memory, for up to four models at once. A thread block works on several chunks of a tensor before it adds
// its counters to those in global memory. Keys at both ends of the interval are counted in registers: many equal keys
// tend to lie there, and atomics on one bin would wait for each other. `shrink_interval` finds the bin with the wanted
// key. If the key lies outside the interval, it goes on with the side that holds the key. In exchange for exactness, a
// selection may need several sweeps.
#include "selection.h"

namespace warpmerge {
namespace {

constexpr int kSweepModels = 4;  // models whose bins fit into shared memory at once

template <class T>
struct Interval {
  Bits<T> low, high;
  int shift;
  bool searching;
};

template <class T>
struct SweepShared {
  unsigned bins[kSweepModels][kSelectBins];
  unsigned above[kSweepModels];
  Interval<T> intervals[kSweepModels];
};

// Adds the counters of a tensor's models to global memory and zeroes them.
template <class T>
WM_DEVICE void flush_bins(SweepShared<T>& shared, unsigned long long* bins, int models) {
  for (int k = 0; k < models; ++k) {
    if (!shared.intervals[k].searching) continue;
    unsigned long long* to = bins + int64_t(k) * kBinColumns;
    for (int bin = int(threadIdx.x); bin < kSelectBins; bin += kSelectThreads) {
      const unsigned found = shared.bins[k][bin];
      if (!found) continue;
      atomicAdd(to + bin, (unsigned long long)(found));
      shared.bins[k][bin] = 0;
    }
    if (threadIdx.x == 0 && shared.above[k]) atomicAdd(to + kSelectBins, (unsigned long long)(shared.above[k]));
  }
}

template <class T>
WM_DEVICE void read_intervals(SweepShared<T>& shared, const int64_t* state, int models) {
  const int k = int(threadIdx.x);
  if (k >= models) return;
  const int64_t* mine = state + int64_t(k) * kSelectColumns;
  Interval<T>& interval = shared.intervals[k];
  interval.low = Bits<T>(mine[kSelectLow]);
  interval.high = Bits<T>(mine[kSelectHigh]);
  interval.shift = select_shift(interval.low, interval.high);
  interval.searching = mine[kSelectStatus] == kSearching;
  shared.above[k] = 0;
}

// Keys of one model in one chunk.
template <class Pack>
WM_DEVICE void sweep_model(const Table& table, const Chunk& chunk, int k, bool count,
                           SweepShared<typename Pack::T>& shared, int at_once) {
  using T = typename Pack::T;
  using Key = Bits<T>;
  constexpr int kTogether = kPacksTogether<Pack>;
  const Interval<T> interval = shared.intervals[at_once];
  const ChunkSource input = input_of(table, chunk, k), from = base_of(table, chunk);
  // Keys at both ends are counted in registers. Many equal keys, such as those of zeros, tend to lie there.
  unsigned above = 0, at_low = 0, at_high = 0;
  WM_ROLLED
  for (int start = 0; start < kChunk; start += kSelectThreads * kPack * kTogether) {
    if (start >= chunk.count) break;
    Pack x[kTogether], base[kTogether];
    WM_UNROLL
    for (int r = 0; r < kTogether; ++r) {
      const int at = start + (r * kSelectThreads + int(threadIdx.x)) * kPack;
      load_with_base(table, input, from, at, left_in(chunk, at, kPack), x[r], base[r]);
    }
    WM_UNROLL
    for (int r = 0; r < kTogether; ++r) {
      const int at = start + (r * kSelectThreads + int(threadIdx.x)) * kPack;
      const int n = left_in(chunk, at, kPack);
      Key keys[kPack];
      keys_of(table, chunk, k, x[r], base[r], count, keys);
      if (!interval.searching) continue;
      WM_UNROLL
      for (int e = 0; e < kPack; ++e) {
        if (e >= n) continue;
        above += keys[e] > interval.high;
        at_high += keys[e] == interval.high;
        at_low += keys[e] == interval.low;
        if (keys[e] > interval.low && keys[e] < interval.high)
          atomicAdd(&shared.bins[at_once][(keys[e] - interval.low) >> interval.shift], 1u);
      }
    }
  }
  if (!interval.searching) return;
  if (interval.low == interval.high) at_low = 0;
  above = sum_of_warp(above), at_low = sum_of_warp(at_low), at_high = sum_of_warp(at_high);
  if (threadIdx.x % kWarp != 0) return;
  if (above) atomicAdd(&shared.above[at_once], above);
  if (at_low) atomicAdd(&shared.bins[at_once][0], at_low);
  if (at_high) atomicAdd(&shared.bins[at_once][(interval.high - interval.low) >> interval.shift], at_high);
}

// A thread block per `each` chunks. It adds up the counters of consecutive chunks of a tensor before it writes them.
template <class Pack>
__global__ void __launch_bounds__(kSelectThreads, 2)
    sweep_keys(WM_PARAM Table table, int each, const int64_t* state, unsigned long long* bins) {
  using T = typename Pack::T;
  __shared__ SweepShared<T> shared;
  for (int i = int(threadIdx.x); i < kSweepModels * kSelectBins; i += kSelectThreads)
    shared.bins[i / kSelectBins][i % kSelectBins] = 0;
  const int64_t start = int64_t(blockIdx.x) * each;
  const int64_t end = start + each < table.chunks ? start + each : table.chunks;
  const bool count = table.nonfinite != nullptr;
  for (int first = 0; first < table.models; first += kSweepModels) {
    const int models = table.models - first < kSweepModels ? table.models - first : kSweepModels;
    int64_t tensor = -1;
    for (int64_t number = start; number < end; ++number) {
      const Chunk chunk = chunk_of(table, number);
      if (chunk.segment_row[kSegmentTensor] != tensor) {
        __syncthreads();
        if (tensor >= 0) flush_bins(shared, bins + (tensor * table.models + first) * kBinColumns, models);
        tensor = chunk.segment_row[kSegmentTensor];
        __syncthreads();
        read_intervals(shared, state + (tensor * table.models + first) * kSelectColumns, models);
        __syncthreads();
      }
      for (int k = 0; k < models; ++k)
        if (count || shared.intervals[k].searching) sweep_model<Pack>(table, chunk, first + k, count, shared, k);
    }
    __syncthreads();
    if (tensor >= 0) flush_bins(shared, bins + (tensor * table.models + first) * kBinColumns, models);
  }
}

// A thread block per tensor and model: the next interval from the counters of a sweep.
__global__ void __launch_bounds__(kSelectThreads)
    shrink_to_bin(int64_t* state, int64_t* bins, int64_t largest, bool keep_all_ties) {
  __shared__ int64_t shared[kSelectThreads];
  constexpr int kPerThread = kSelectBins / kSelectThreads;
  int64_t* mine = state + int64_t(blockIdx.x) * kSelectColumns;
  int64_t* counters = bins + int64_t(blockIdx.x) * kBinColumns;
  if (mine[kSelectStatus] != kSearching) return;
  const int64_t target = mine[kSelectTarget], low = mine[kSelectLow], high = mine[kSelectHigh];
  const int shift = select_shift(uint64_t(low), uint64_t(high));
  // From the highest bin down.
  const int highest = kSelectBins - 1 - int(threadIdx.x) * kPerThread;
  int64_t found[kPerThread], sum = 0;
  WM_UNROLL
  for (int j = 0; j < kPerThread; ++j) sum += found[j] = counters[highest - j];
  const int64_t above = counters[kSelectBins];
  const int64_t from = above + inclusive_scan(sum, shared);  // keys in this thread's bins or higher
  const int64_t inside = shared[kSelectThreads - 1];
  __syncthreads();  // all threads have read the counters
  for (int j = 0; j < kPerThread; ++j) counters[highest - j] = 0;
  if (threadIdx.x == 0) counters[kSelectBins] = 0;
  const bool here = from - sum < target && target <= from;
  if (here) {
    int64_t higher = from - sum, ties = 0;
    int bin = highest;
    WM_UNROLL
    for (int j = 0; j < kPerThread; ++j) {
      if (ties == 0 && target <= higher + found[j]) bin = highest - j, ties = found[j];
      if (ties == 0) higher += found[j];
    }
    const int64_t bottom = low + (int64_t(bin) << shift), width = int64_t(1) << shift;
    const int64_t top = high - bottom < width ? high : bottom + width - 1;
    mine[kSelectLow] = bottom;
    mine[kSelectHigh] = top;
    mine[kSelectAbove] = higher;
    mine[kSelectInside] = ties;
    if (bottom == top) {
      const bool all = keep_all_ties || bottom == 0 || ties <= target - higher;
      mine[kSelectStatus] = all ? kSelected : kKeyKnown;
    }
  } else if (threadIdx.x == 0 && target <= above) {
    mine[kSelectLow] = high + 1;
    mine[kSelectHigh] = largest;
    mine[kSelectAbove] = 0;
    mine[kSelectInside] = above;
  } else if (threadIdx.x == 0 && target > above + inside) {
    mine[kSelectLow] = 0;
    mine[kSelectHigh] = low - 1;
    mine[kSelectAbove] = above + inside;
    mine[kSelectInside] = -1;
  }
}

}  // namespace

void select_sweep(cudaStream_t stream, const KernelLaunch& work, const int64_t* state, int64_t* bins,
                  int64_t* nonfinite) {
  const Table table = make_table(work, 0, nonfinite);
  // First enough thread blocks to fill a large device several times over, then more chunks for each.
  constexpr int64_t kManyBlocks = 2048, kMostEach = 8;
  const int64_t fair = work.chunks / kManyBlocks;
  const int each = int(fair < 1 ? 1 : fair < kMostEach ? fair : kMostEach);
  using Kernel = void (*)(Table, int, const int64_t*, unsigned long long*);
  const Kernel kernel = with_pack<kPack>(work, [](auto pack) -> Kernel { return sweep_keys<decltype(pack)>; });
  launch("select_sweep", kernel, (work.chunks + each - 1) / each, kSelectThreads, stream, table, each, state,
         reinterpret_cast<unsigned long long*>(bins));
}

void shrink_interval(cudaStream_t stream, int64_t* state, int64_t* bins, int64_t pairs, bool fp64, bool keep_all_ties) {
  const int64_t largest = fp64 ? int64_t(FloatTraits<double>::magnitude) : int64_t(FloatTraits<float>::magnitude);
  launch("shrink_interval", shrink_to_bin, pairs, kSelectThreads, stream, state, bins, largest, keep_all_ties);
}

}  // namespace warpmerge
