#include "../ops/select.h"

#include "../ops/digest.h"
#include "warps.h"

namespace warpmerge {
namespace {

constexpr int kSelectThreads = 256;
constexpr int kBinColumns = kSelectBins + 2;

// Groups of a thread whose loads are issued together.
template <class Group>
constexpr int kGroupsTogether = sizeof(Group) <= 32 ? 2 : 1;

WM_FN int64_t* state_of(int64_t* state, const Table& table, const Chunk& chunk, int model) {
  return state + (chunk.place[kPlaceSlot] * table.models + model) * kSelectColumns;
}

WM_FN const int64_t* state_of(const int64_t* state, const Table& table, const Chunk& chunk, int model) {
  return state + (chunk.place[kPlaceSlot] * table.models + model) * kSelectColumns;
}

// A whole segment as one chunk.
WM_FN Chunk segment_of(const Table& table, int64_t segment) { return {place_of(table, segment), segment, 0, kChunk}; }

template <class Group>
WM_DEVICE void load_pair(const Table& table, const Source& input, const Source& base, int at, int n, Group& x,
                         Group& b) {
  x.template load<false>(input, at, n);
  if (table.has_base)
    b.template load<false>(base, at, n);
  else
    b.clear();
}

// Keys of a group's deltas. `count`: count what is not finite.
template <class Group>
WM_DEVICE void keys_of(const Table& table, const Chunk& chunk, int k, const Group& x, const Group& base, bool count,
                       Bits<typename Group::T> (&keys)[kGroup]) {
  using T = typename Group::T;
  bool finite = true;
  WM_UNROLL
  for (int e = 0; e < kGroup; ++e) {
    keys[e] = magnitude_key(x.get(e) - base.get(e));
    finite &= keys[e] < FloatTraits<T>::infinity;
  }
  if (finite) return;
  WM_UNROLL
  for (int e = 0; e < kGroup; ++e) keys[e] = magnitude_key(settle_nonfinite(x.get(e) - base.get(e), table.policy));
  if (count) count_nonfinite(table, chunk, k, x, base);
}

// Sum over a thread block of kSelectThreads, in all its threads.
template <class T>
WM_DEVICE T sum_of_block(T value, T* shared) {
  value = sum_of_warp(value);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  WM_UNROLL
  for (int w = 0; w < kSelectThreads / kWarp; ++w) sum += shared[w];
  return sum;
}

// The sum of the values of this thread and of all before it.
WM_DEVICE int64_t inclusive_scan(int64_t value, int64_t* shared) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int distance = 1; distance < kSelectThreads; distance *= 2) {
    const int64_t before = int(threadIdx.x) >= distance ? shared[threadIdx.x - distance] : 0;
    __syncthreads();
    shared[threadIdx.x] += before;
    __syncthreads();
  }
  return shared[threadIdx.x];
}

// --- sample ---------------------------------------------------------------------------------------------------------

constexpr int kSampleGroups = 2;  // runs of kGroup neighbours per thread
constexpr int kSampleRuns = kSelectThreads * kSampleGroups;
constexpr int64_t kSampled = int64_t(kSampleRuns) * kGroup;

// The key of this rank, from the largest, 0 the first: by bisection, as counting is cheap here.
template <class Key>
WM_DEVICE Key sampled_key(const Key (&keys)[kSampleGroups][kGroup], int64_t rank, Key low, Key high, int* shared) {
  while (low < high) {
    const Key middle = low + (high - low) / 2 + 1;
    int from = 0;
    WM_UNROLL
    for (int r = 0; r < kSampleGroups; ++r) {
      WM_UNROLL
      for (int e = 0; e < kGroup; ++e) from += keys[r][e] >= middle;
    }
    if (sum_of_block(from, shared) > rank)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// A thread block per segment and model: the first interval, from runs spread over the segment.
template <class T>
__global__ void __launch_bounds__(kSelectThreads) sample_keys(WM_PARAM Table table, int64_t* state) {
  using Key = Bits<T>;
  using Group = Widened<T, kGroup>;
  __shared__ int shared_int[kSelectThreads / kWarp];
  __shared__ double shared[kSelectThreads / kWarp];
  const int k = int(blockIdx.x % unsigned(table.models));
  Chunk chunk = segment_of(table, blockIdx.x / unsigned(table.models));
  int64_t* mine = state_of(state, table, chunk, k);
  const int64_t count = chunk.place[kPlaceCount], groups = count / kGroup;
  const int64_t total = chunk.place[kPlaceTotal] ? chunk.place[kPlaceTotal] : count;
  const int64_t target = mine[kSelectTarget];
  // The same for all threads, as are the ranks below.
  if (mine[kSelectStatus] != kSearching || groups < kSampleRuns) return;
  Key keys[kSampleGroups][kGroup];
  WM_UNROLL
  for (int r = 0; r < kSampleGroups; ++r) {
    const int64_t run = r * kSelectThreads + int64_t(threadIdx.x), stride = groups / kSampleRuns;
    // A place within each stride that is the same every time but follows no row length.
    chunk.begin = (run * stride + int64_t(mix64(uint64_t(run)) % uint64_t(stride))) * kGroup;
    Group x, base;
    load_pair(table, input_of(table, chunk, k), base_of(table, chunk), 0, kGroup, x, base);
    keys_of(table, chunk, k, x, base, false, keys[r]);
  }
  const Key largest = FloatTraits<T>::magnitude;
  const int64_t guess = int64_t(double(target) / double(total) * double(kSampled));
  const int64_t rank = guess < kSampled ? guess : kSampled - 1;
  const Key middle = sampled_key<Key>(keys, rank, 0, largest, shared_int);
  // Neighbours are alike (a row of an embedding changed or did not), so the error is taken from how much the runs
  // differ: the variance of a sum of runs, for the keys above the middle one and for those from it on.
  double above = 0, from = 0, squares_above = 0, squares_from = 0;
  WM_UNROLL
  for (int r = 0; r < kSampleGroups; ++r) {
    double run_above = 0, run_from = 0;
    WM_UNROLL
    for (int e = 0; e < kGroup; ++e) run_above += keys[r][e] > middle, run_from += keys[r][e] >= middle;
    above += run_above, squares_above += run_above * run_above;
    from += run_from, squares_from += run_from * run_from;
  }
  above = sum_of_block(above, shared), squares_above = sum_of_block(squares_above, shared);
  from = sum_of_block(from, shared), squares_from = sum_of_block(squares_from, shared);
  const double spread_above = squares_above - above * above / kSampleRuns;
  const double spread_from = squares_from - from * from / kSampleRuns;
  const int64_t margin = 4 + int64_t(4.0 * sqrt(spread_above > spread_from ? spread_above : spread_from));
  const Key high = rank > margin ? sampled_key<Key>(keys, rank - margin, middle, largest, shared_int) : largest;
  const Key low = rank + margin < kSampled ? sampled_key<Key>(keys, rank + margin, 0, middle, shared_int) : 0;
  if (threadIdx.x == 0) mine[kSelectLow] = int64_t(low), mine[kSelectHigh] = int64_t(high);
}

// --- sweep ----------------------------------------------------------------------------------------------------------

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

// Adds the counters of a slot's models to global memory and zeroes them.
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
template <class Group>
WM_DEVICE void sweep_model(const Table& table, const Chunk& chunk, int k, bool count,
                           SweepShared<typename Group::T>& shared, int at_once) {
  using T = typename Group::T;
  using Key = Bits<T>;
  constexpr int kBatch = kGroupsTogether<Group>;
  const Interval<T> interval = shared.intervals[at_once];
  const Source input = input_of(table, chunk, k), from = base_of(table, chunk);
  // Both ends are counted in registers: large groups of equal keys, as of zeros, tend to lie there.
  unsigned above = 0, at_low = 0, at_high = 0;
  WM_ROLLED
  for (int batch = 0; batch < kChunk; batch += kSelectThreads * kGroup * kBatch) {
    if (batch >= chunk.count) break;
    Group x[kBatch], base[kBatch];
    WM_UNROLL
    for (int r = 0; r < kBatch; ++r) {
      const int at = batch + (r * kSelectThreads + int(threadIdx.x)) * kGroup;
      load_pair(table, input, from, at, left_in(chunk, at, kGroup), x[r], base[r]);
    }
    WM_UNROLL
    for (int r = 0; r < kBatch; ++r) {
      const int at = batch + (r * kSelectThreads + int(threadIdx.x)) * kGroup;
      const int n = left_in(chunk, at, kGroup);
      Key keys[kGroup];
      keys_of(table, chunk, k, x[r], base[r], count, keys);
      if (!interval.searching) continue;
      WM_UNROLL
      for (int e = 0; e < kGroup; ++e) {
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

// A thread block per `span` chunks: the counters of consecutive chunks of a slot are added up before they leave.
template <class Group>
__global__ void __launch_bounds__(kSelectThreads, 2)
    sweep_keys(WM_PARAM Table table, int span, const int64_t* state, unsigned long long* bins) {
  using T = typename Group::T;
  __shared__ SweepShared<T> shared;
  for (int i = int(threadIdx.x); i < kSweepModels * kSelectBins; i += kSelectThreads)
    shared.bins[i / kSelectBins][i % kSelectBins] = 0;
  const int64_t start = int64_t(blockIdx.x) * span;
  const int64_t end = start + span < table.chunks ? start + span : table.chunks;
  const bool count = table.nonfinite != nullptr;
  for (int first = 0; first < table.models; first += kSweepModels) {
    const int models = table.models - first < kSweepModels ? table.models - first : kSweepModels;
    int64_t slot = -1;
    for (int64_t number = start; number < end; ++number) {
      const Chunk chunk = chunk_of(table, number);
      if (chunk.place[kPlaceSlot] != slot) {
        __syncthreads();
        if (slot >= 0) flush_bins(shared, bins + (slot * table.models + first) * kBinColumns, models);
        slot = chunk.place[kPlaceSlot];
        __syncthreads();
        read_intervals(shared, state + (slot * table.models + first) * kSelectColumns, models);
        __syncthreads();
      }
      for (int k = 0; k < models; ++k)
        if (count || shared.intervals[k].searching) sweep_model<Group>(table, chunk, first + k, count, shared, k);
    }
    __syncthreads();
    if (slot >= 0) flush_bins(shared, bins + (slot * table.models + first) * kBinColumns, models);
  }
}

// --- narrow ---------------------------------------------------------------------------------------------------------

// A thread block per slot and model: the next interval from the counters of a sweep.
__global__ void __launch_bounds__(kSelectThreads)
    narrow_interval(int64_t* state, int64_t* bins, int64_t largest, bool keep_all_ties) {
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
  __syncthreads();  // all have read what is overwritten now
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
    const int64_t top = bottom + width - 1 < high ? bottom + width - 1 : high;
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

// --- ties -----------------------------------------------------------------------------------------------------------

// A warp per block of the reduction order: how many keys equal the one selected, per model.
template <class Group>
__global__ void __launch_bounds__(kMeasureThreads, 5)
    count_ties(WM_PARAM Table table, const int64_t* state, int32_t* tie_counts) {
  using Key = Bits<typename Group::T>;
  constexpr int kBatch = kGroupsTogether<Group>;
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  if (warp * kBlock >= chunk.count) return;
  const int64_t row = chunk.place[kPlaceBlock] + chunk.begin / kBlock + warp;
  const Source from = base_of(table, chunk);
  WM_ROLLED
  for (int k = 0; k < table.models; ++k) {
    const int64_t* mine = state_of(state, table, chunk, k);
    if (mine[kSelectStatus] != kKeyKnown) continue;
    const Key key = Key(mine[kSelectLow]);
    const Source input = input_of(table, chunk, k);
    int ties = 0;
    WM_ROLLED
    for (int batch = 0; batch < kRows; batch += kBatch) {
      Group x[kBatch], base[kBatch];
      WM_UNROLL
      for (int r = 0; r < kBatch; ++r) {
        const int at = warp * kBlock + (batch + r) * kLanes + lane * kGroup;
        load_pair(table, input, from, at, left_in(chunk, at, kGroup), x[r], base[r]);
      }
      WM_UNROLL
      for (int r = 0; r < kBatch; ++r) {
        const int n = left_in(chunk, warp * kBlock + (batch + r) * kLanes + lane * kGroup, kGroup);
        Key keys[kGroup];
        keys_of(table, chunk, k, x[r], base[r], false, keys);
        WM_UNROLL
        for (int e = 0; e < kGroup; ++e) ties += e < n && keys[e] == key;
      }
    }
    ties = sum_of_warp(ties);
    if (lane == 0) tie_counts[row * table.models + k] = ties;
  }
}

// A thread block per slot and model: the block that holds the last tie to keep.
__global__ void __launch_bounds__(kSelectThreads)
    locate_tie(int64_t* state, const int32_t* tie_counts, const int64_t* ranges, int models) {
  constexpr int kPerThread = 8;
  __shared__ int64_t shared[kSelectThreads];
  const int64_t slot = blockIdx.x / unsigned(models);
  const int k = int(blockIdx.x % unsigned(models));
  int64_t* mine = state + int64_t(blockIdx.x) * kSelectColumns;
  if (mine[kSelectStatus] != kKeyKnown) return;
  const int64_t rank = mine[kSelectTarget] - mine[kSelectAbove], rows = ranges[2 * slot + 1];
  const int32_t* counts = tie_counts + ranges[2 * slot] * models + k;
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

// A warp per segment and model: where in its block that tie is.
template <class T>
__global__ void __launch_bounds__(kWarp) find_tie(WM_PARAM Table table, int64_t* state) {
  using Group = Widened<T, kGroup>;
  const int k = int(blockIdx.x % unsigned(table.models)), lane = int(threadIdx.x);
  Chunk chunk = segment_of(table, blockIdx.x / unsigned(table.models));
  int64_t* mine = state_of(state, table, chunk, k);
  const int64_t count = chunk.place[kPlaceCount], first = chunk.place[kPlaceFirst];
  const int64_t begin = (mine[kSelectTie] >> kTieRankBits) * kBlock - first;
  if (mine[kSelectStatus] != kKeyKnown || begin < 0 || begin >= count) return;
  const Bits<T> key = Bits<T>(mine[kSelectLow]);
  const int rank = int(mine[kSelectTie] & ((int64_t(1) << kTieRankBits) - 1));
  chunk.begin = begin;
  chunk.count = int(count - begin < kBlock ? count - begin : kBlock);
  int passed = 0;
  WM_ROLLED
  for (int r = 0; r < kRows; ++r) {
    const int at = r * kLanes + lane * kGroup, n = left_in(chunk, at, kGroup);
    Group x, base;
    load_pair(table, input_of(table, chunk, k), base_of(table, chunk), at, n, x, base);
    Bits<T> keys[kGroup];
    keys_of(table, chunk, k, x, base, false, keys);
    int before = passed;
    WM_UNROLL
    for (int e = 0; e < kGroup; ++e) {
      const unsigned tied = __ballot_sync(kWholeWarp, e < n && keys[e] == key);
      before += __popc(tied & ((1u << lane) - 1));
      passed += __popc(tied);
    }
    WM_UNROLL
    for (int e = 0; e < kGroup; ++e)
      if (e < n && keys[e] == key && ++before == rank) mine[kSelectTieEnd] = first + begin + at + e + 1;
  }
}

}  // namespace

void select_sample(cudaStream_t stream, const Launch& work, int64_t* state) {
  const Table table = make_table(work, 0, nullptr);
  launch("select_sample", work.wide ? sample_keys<double> : sample_keys<float>, work.segments * work.models,
         kSelectThreads, stream, table, state);
}

void select_sweep(cudaStream_t stream, const Launch& work, const int64_t* state, int64_t* bins, int64_t* nonfinite) {
  const Table table = make_table(work, 0, nonfinite);
  // Enough thread blocks to fill a large device several times over, then longer spans.
  constexpr int64_t kManyBlocks = 2048, kLongestSpan = 8;
  const int64_t fair = work.chunks / kManyBlocks;
  const int span = int(fair < 1 ? 1 : fair < kLongestSpan ? fair : kLongestSpan);
  using Kernel = void (*)(Table, int, const int64_t*, unsigned long long*);
  const Kernel kernel = with_group<kGroup>(work, [](auto group) -> Kernel { return sweep_keys<decltype(group)>; });
  launch("select_sweep", kernel, (work.chunks + span - 1) / span, kSelectThreads, stream, table, span, state,
         reinterpret_cast<unsigned long long*>(bins));
}

void select_narrow(cudaStream_t stream, int64_t* state, int64_t* bins, int64_t pairs, bool wide, bool keep_all_ties) {
  const int64_t largest = wide ? int64_t(FloatTraits<double>::magnitude) : int64_t(FloatTraits<float>::magnitude);
  launch("select_narrow", narrow_interval, pairs, kSelectThreads, stream, state, bins, largest, keep_all_ties);
}

void select_ties(cudaStream_t stream, const Launch& work, const int64_t* state, int32_t* tie_counts) {
  const Table table = make_table(work, 0, nullptr);
  using Kernel = void (*)(Table, const int64_t*, int32_t*);
  const Kernel kernel = with_group<kGroup>(work, [](auto group) -> Kernel { return count_ties<decltype(group)>; });
  launch("select_ties", kernel, work.chunks, kMeasureThreads, stream, table, state, tie_counts);
}

void select_locate(cudaStream_t stream, int64_t* state, const int32_t* tie_counts, const int64_t* ranges, int64_t slots,
                   int models) {
  launch("select_locate", locate_tie, slots * models, kSelectThreads, stream, state, tie_counts, ranges, models);
}

void select_position(cudaStream_t stream, const Launch& work, int64_t* state) {
  const Table table = make_table(work, 0, nullptr);
  launch("select_position", work.wide ? find_tie<double> : find_tie<float>, work.segments * work.models, kWarp, stream,
         table, state);
}

}  // namespace warpmerge
