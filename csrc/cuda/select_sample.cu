// The first interval of a selection (selection.h), from a sample of a tensor's keys.
//
// A thread block takes runs of neighbouring elements spread over the tensor's first segment: 4096 keys. It finds the
// sampled key whose rank corresponds to the wanted one, then one key some ranks above and one below. The margin is four
// standard errors. Neighbours are often alike, so the error comes from how much the runs differ, not from the number of
// keys. A sample costs little, and most keys then lie outside the interval, where a sweep only compares them. If the
// sample misleads, the wanted key lies outside, and select_sweep.cu goes on there: further sweeps, the same result.
#include "../ops/digest.h"
#include "selection.h"

namespace warpmerge {
namespace {

constexpr int kSamplePacks = 2;  // runs of kPack neighbours per thread
constexpr int kSampleRuns = kSelectThreads * kSamplePacks;
constexpr int64_t kSampled = int64_t(kSampleRuns) * kPack;

// The sampled key of this rank; the largest key has rank 0. By bisection, because counting is cheap here.
template <class Key>
WM_DEVICE Key sampled_key(const Key (&keys)[kSamplePacks][kPack], int64_t rank, Key low, Key high, int* shared) {
  while (low < high) {
    const Key middle = low + (high - low) / 2 + 1;
    int from = 0;
    WM_UNROLL
    for (int r = 0; r < kSamplePacks; ++r) {
      WM_UNROLL
      for (int e = 0; e < kPack; ++e) from += keys[r][e] >= middle;
    }
    if (sum_of_block(from, shared) > rank)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// A thread block per segment and model: the first interval, from runs spread over the segment. Only a tensor's first
// segment is sampled. Other segments may be worked on at the same time, and low and high must come from one sample.
template <class T>
__global__ void __launch_bounds__(kSelectThreads) sample_keys(WM_PARAM Table table, int64_t* state) {
  using Key = Bits<T>;
  using Pack = Widened<T, kPack>;
  __shared__ int shared_int[kSelectThreads / kWarp];
  __shared__ double shared[kSelectThreads / kWarp];
  const int k = int(blockIdx.x % unsigned(table.models));
  Chunk chunk = whole_segment(table, blockIdx.x / unsigned(table.models));
  int64_t* mine = state_of(state, table, chunk, k);
  const int64_t count = chunk.segment_row[kSegmentCount], packs = count / kPack;
  const int64_t total = chunk.segment_row[kSegmentTotal] ? chunk.segment_row[kSegmentTotal] : count;
  const int64_t target = mine[kSelectTarget];
  // The condition, like the ranks below, is the same for all threads.
  if (mine[kSelectStatus] != kSearching || chunk.segment_row[kSegmentFirst] != 0 || packs < kSampleRuns) return;
  Key keys[kSamplePacks][kPack];
  WM_UNROLL
  for (int r = 0; r < kSamplePacks; ++r) {
    const int64_t run = r * kSelectThreads + int64_t(threadIdx.x), stride = packs / kSampleRuns;
    // The place within each stride is the same in every run of the program, but follows no row length.
    chunk.begin = (run * stride + int64_t(mix64(uint64_t(run)) % uint64_t(stride))) * kPack;
    Pack x, base;
    load_with_base(table, input_of(table, chunk, k), base_of(table, chunk), 0, kPack, x, base);
    keys_of(table, chunk, k, x, base, false, keys[r]);
  }
  const Key largest = FloatTraits<T>::magnitude;
  const int64_t guess = int64_t(double(target) / double(total) * double(kSampled));
  const int64_t rank = guess < kSampled ? guess : kSampled - 1;
  const Key middle = sampled_key<Key>(keys, rank, 0, largest, shared_int);
  // Neighbours are alike: a row of an embedding changed or did not. So the error comes from how much the runs differ.
  // It is the variance of a sum over runs, once of the keys above the middle key and once of the keys from it on.
  double above = 0, from = 0, squares_above = 0, squares_from = 0;
  WM_UNROLL
  for (int r = 0; r < kSamplePacks; ++r) {
    double run_above = 0, run_from = 0;
    WM_UNROLL
    for (int e = 0; e < kPack; ++e) run_above += keys[r][e] > middle, run_from += keys[r][e] >= middle;
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

}  // namespace

void select_sample(cudaStream_t stream, const KernelLaunch& work, int64_t* state) {
  const Table table = make_table(work, 0, nullptr);
  launch("select_sample", work.fp64 ? sample_keys<double> : sample_keys<float>, work.segments * work.models,
         kSelectThreads, stream, table, state);
}

}  // namespace warpmerge
