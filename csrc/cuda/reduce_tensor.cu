// Sums over a tensor in the compute type: of each delta or value, or of magnitudes and of those that a mask keeps.
//
// This is `Reduce` over a tensor (python/warpmerge/requests.py); csrc/ops/reduce.h defines the order. A warp works on
// one block, and each thread owns eight neighbouring lanes (warps.h). reduce.cu adds the sums of the blocks.
// `kept_sums` is an accelerator for the sums of |d| and |mask(d)|. The expression writes its values to scratch, and
// another kernel reads them; `kept_sums` reads the deltas once and writes sums only. In exchange there is one more
// kernel to maintain.
#include <math.h>

#include "rules.h"
#include "warps.h"

namespace warpmerge {
namespace {

WM_DEVICE float absolute(float a) { return fabsf(a); }
WM_DEVICE double absolute(double a) { return fabs(a); }

// What a rule keeps of a pack: the elements whose bit is set and whose magnitude is at least `lowest`.
template <class T>
struct Kept {
  T lowest;
  uint32_t bits;
};

template <class T, int N>
WM_DEVICE Kept<T> kept_of(const Rule<T>& rule, int64_t flat, const T (&d)[N]) {
  if (rule.drawn) return {T(0), drawn_bits(rule, flat)};
  if (!straddles(rule, flat, N)) return {bit_cast<T>(flat < rule.tie_end ? rule.before : rule.after), 0xffu};
  uint32_t bits = 0;
  WM_UNROLL
  for (int e = 0; e < N; ++e)
    bits |= uint32_t(magnitude_key(d[e]) >= (flat + e < rule.tie_end ? rule.before : rule.after)) << e;
  return {T(0), bits};
}

// The running sums of one thread's lanes: of deltas, or (`kKept`) of all magnitudes and of the magnitudes that a rule
// keeps.
template <class T, bool kKept>
struct LaneSums {
  static constexpr int kSums = kKept ? 2 : 1;
  T sums[kSums][kPack];

  WM_METHOD void clear() {
    WM_UNROLL
    for (int s = 0; s < kSums; ++s) {
      WM_UNROLL
      for (int e = 0; e < kPack; ++e) sums[s][e] = T(0);
    }
  }

  // A row's deltas: all finite, 0 outside the tensor. For finite numbers, keys order like magnitudes. A bound that
  // keeps nothing is a NaN: `>=` is false.
  WM_METHOD void add(const T (&d)[kPack], const Kept<T>& rule) {
    WM_UNROLL
    for (int e = 0; e < kPack; ++e) {
      if constexpr (kKept) {
        const T magnitude = absolute(d[e]);
        const T left = (rule.bits & (1u << e)) != 0 && magnitude >= rule.lowest ? magnitude : T(0);
        sums[0][e] = sums[0][e] + magnitude;
        sums[1][e] = sums[1][e] + left;
      } else {
        sums[0][e] = sums[0][e] + d[e];
      }
    }
  }
};

// A warp per block of the reduction order: each thread has eight neighbouring lanes, model after model.
template <class Pack, bool kKept>
__global__ void __launch_bounds__(kMeasureThreads, sizeof(typename Pack::T) == 4 ? 4 : 3)
    sum_blocks_of(WM_PARAM Table table, double* partials) {
  using T = typename Pack::T;
  constexpr int kTogether = sizeof(Pack) <= 16 ? 4 : sizeof(Pack) <= 32 ? 2 : 1;  // rows loaded together
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int block_at = warp * kBlock;
  if (block_at >= chunk.count) return;
  const int64_t flat = chunk.segment_row[kSegmentFirst] + chunk.begin;
  const int64_t row = chunk.segment_row[kSegmentBlock] + chunk.begin / kBlock + warp;
  const ChunkSource from = base_of(table, chunk);
  WM_ROLLED
  for (int k = 0; k < table.models; ++k) {
    const ChunkSource input = input_of(table, chunk, k);
    Rule<T> rule{};
    if constexpr (kKept) rule = rule_of<T>(table.rules + (chunk.segment * table.models + k) * 4);
    LaneSums<T, kKept> sums;
    sums.clear();
    WM_ROLLED
    for (int start = 0; start < kRows; start += kTogether) {
      Pack x[kTogether], base[kTogether];
      WM_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        const int at = block_at + (start + r) * kLanes + lane * kPack;
        const int n = left_in(chunk, at, kPack);
        x[r].template load<false>(input, at, n);
        if (table.has_base)
          base[r].template load<false>(from, at, n);
        else
          base[r].clear();
      }
      WM_UNROLL
      for (int r = 0; r < kTogether; ++r) {
        const int at = block_at + (start + r) * kLanes + lane * kPack;
        T d[kPack];
        deltas_over_finite(table, chunk, k, x[r], base[r], true, d);
        Kept<T> kept{};
        if constexpr (kKept) kept = kept_of(rule, flat + at, d);
        sums.add(d, kept);
      }
    }
    constexpr int kSums = LaneSums<T, kKept>::kSums;
    double* to = partials + (row * table.models + k) * kSums;
    WM_UNROLL
    for (int i = 0; i < kSums; ++i) {
      const T sum = sum_of_lanes(sums.sums[i]);
      if (lane == 0) to[i] = double(sum);
    }
  }
}

using SumKernel = void (*)(Table, double*);

template <bool kKept>
void launch_sums(const char* name, cudaStream_t stream, const KernelLaunch& work, double* partials,
                 int64_t* nonfinite) {
  const Table table = make_table(work, 0, nonfinite);
  const SumKernel kernel =
      with_pack<kPack>(work, [&](auto pack) -> SumKernel { return sum_blocks_of<decltype(pack), kKept>; });
  launch(name, kernel, work.chunks, kMeasureThreads, stream, table, partials);
}

}  // namespace

void tensor_sums(cudaStream_t stream, const KernelLaunch& work, double* partials, int64_t* nonfinite) {
  launch_sums<false>("tensor_sums", stream, work, partials, nonfinite);
}

void kept_sums(cudaStream_t stream, const KernelLaunch& work, double* partials, int64_t* nonfinite) {
  launch_sums<true>("kept_sums", stream, work, partials, nonfinite);
}

}  // namespace warpmerge
