#include "../ops/moments.h"

#include <math.h>

#include "rules.h"
#include "warps.h"

namespace warpmerge {
namespace {

// Of finite numbers; which zero does not matter.
WM_DEVICE float smaller(float a, float b) { return fminf(a, b); }
WM_DEVICE double smaller(double a, double b) { return fmin(a, b); }
WM_DEVICE float absolute(float a) { return fabsf(a); }
WM_DEVICE double absolute(double a) { return fabs(a); }
WM_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
WM_DEVICE double larger(double a, double b) { return fmax(a, b); }

// The least key that the rule keeps of a group from `flat` on, and those of its elements, as bits, that it keeps at
// all.
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

// The running quantities of one thread's lanes.
template <class T, bool kOnlyL1>
struct LaneMoments {
  T sum_abs[kGroup], kept_abs[kGroup], sum_sq[kGroup];
  T least, most;
  int nonzero, kept;

  WM_METHOD void clear() {
    WM_UNROLL
    for (int e = 0; e < kGroup; ++e) sum_abs[e] = kept_abs[e] = sum_sq[e] = T(0);
    least = bit_cast<T>(FloatTraits<T>::infinity);
    most = -least;
    nonzero = kept = 0;
  }

  // A row's deltas, all finite; the first n of them are inside the tensor and the others 0. Keys order like magnitudes,
  // and no magnitude is at least a NaN. `kWhole`: the row is inside the tensor.
  template <bool kWhole>
  WM_METHOD void add(const T (&d)[kGroup], const Kept<T>& rule, int n) {
    WM_UNROLL
    for (int e = 0; e < kGroup; ++e) {
      const T magnitude = absolute(d[e]);
      const T left = (rule.bits & (1u << e)) != 0 && magnitude >= rule.lowest ? magnitude : T(0);
      sum_abs[e] = sum_abs[e] + magnitude;
      kept_abs[e] = kept_abs[e] + left;
      if (kOnlyL1) continue;
      sum_sq[e] = sum_sq[e] + d[e] * d[e];
      nonzero += d[e] != T(0);
      kept += left != T(0);
      if (!kWhole && e >= n) continue;
      least = smaller(least, d[e]);
      most = larger(most, d[e]);
    }
  }
};

// A warp per block of the reduction order: each thread has eight neighbouring lanes, model after model.
template <class Group, bool kOnlyL1>
__global__ void __launch_bounds__(kMeasureThreads, sizeof(typename Group::T) == 4 ? 4 : 3)
    moments_blocks(WM_PARAM Table table, double* partials) {
  using T = typename Group::T;
  constexpr int kBatch = sizeof(Group) <= 16 ? 4 : sizeof(Group) <= 32 ? 2 : 1;  // rows loaded together
  const Chunk chunk = chunk_of(table, blockIdx.x);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  const int block_at = warp * kBlock;
  if (block_at >= chunk.count) return;
  const int64_t flat = chunk.place[kPlaceFirst] + chunk.begin;
  const int64_t row = chunk.place[kPlaceBlock] + chunk.begin / kBlock + warp;
  const Source from = base_of(table, chunk);
  WM_ROLLED
  for (int k = 0; k < table.models; ++k) {
    const Source input = input_of(table, chunk, k);
    const Rule<T> rule = rule_of<T>(table.keeps + (chunk.segment * table.models + k) * 4);
    LaneMoments<T, kOnlyL1> sums;
    sums.clear();
    WM_ROLLED
    for (int batch = 0; batch < kRows; batch += kBatch) {
      Group x[kBatch], base[kBatch];
      WM_UNROLL
      for (int r = 0; r < kBatch; ++r) {
        const int at = block_at + (batch + r) * kLanes + lane * kGroup;
        const int n = left_in(chunk, at, kGroup);
        x[r].template load<false>(input, at, n);
        if (table.has_base)
          base[r].template load<false>(from, at, n);
        else
          base[r].clear();
      }
      WM_UNROLL
      for (int r = 0; r < kBatch; ++r) {
        const int at = block_at + (batch + r) * kLanes + lane * kGroup;
        T d[kGroup];
        deltas_over_finite(table, chunk, k, x[r], base[r], true, d);
        const Kept<T> kept = kept_of(rule, flat + at, d);
        if (at + kGroup <= chunk.count)
          sums.template add<true>(d, kept, kGroup);
        else
          sums.template add<false>(d, kept, left_in(chunk, at, kGroup));
      }
    }
    const T sum_abs = sum_of_lanes(sums.sum_abs), kept_abs = sum_of_lanes(sums.kept_abs);
    double* to = partials + (row * table.models + k) * (kOnlyL1 ? kL1Columns : kMomentsColumns);
    if (kOnlyL1) {
      if (lane == 0) to[0] = double(sum_abs), to[1] = double(kept_abs);
      continue;
    }
    const T sum_sq = sum_of_lanes(sums.sum_sq);
    const int nonzero = sum_of_warp(sums.nonzero), kept = sum_of_warp(sums.kept);
    T least = sums.least, most = sums.most;
    WM_UNROLL
    for (int distance = 1; distance < kWarp; distance *= 2) {
      least = smaller(least, __shfl_xor_sync(kWholeWarp, least, distance));
      most = larger(most, __shfl_xor_sync(kWholeWarp, most, distance));
    }
    if (lane != 0) continue;
    to[0] = double(sum_abs);
    to[1] = double(sum_sq);
    to[2] = double(kept_abs);
    to[3] = double(from_ordered<T>(ordered(least)));
    to[4] = double(from_ordered<T>(ordered(most)));
    to[5] = nonzero;
    to[6] = kept;
  }
}

using MomentsKernel = void (*)(Table, double*);

template <class Group>
MomentsKernel moments_of(bool only_l1) {
  return only_l1 ? moments_blocks<Group, true> : moments_blocks<Group, false>;
}

}  // namespace

void moments(cudaStream_t stream, const Launch& work, bool only_l1, double* partials, int64_t* nonfinite) {
  const Table table = make_table(work, 0, nonfinite);
  const MomentsKernel kernel =
      with_group<kGroup>(work, [&](auto group) { return moments_of<decltype(group)>(only_l1); });
  launch("moments", kernel, work.chunks, kMeasureThreads, stream, table, partials);
}

}  // namespace warpmerge
