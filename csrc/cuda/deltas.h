// The generic path to the deltas of a pack: any dtype, any alignment.
//
// Inputs and base are widened to the compute type, then subtracted. The policy of the launch settles a delta that is
// not finite (docs/numerics.md, "NaN and infinity"), and the elements behind it are counted. A mask then sets what it
// drops to 0. Formulas always load their deltas here. Packed kernels (elect_and_sum.cu, weighted_sum.cu) leave their
// unusual packs to this path. In exchange for its generality, each load chooses among the dtypes at run time.
#pragma once

#include "packs.h"
#include "rules.h"

namespace warpmerge {

template <class T, int N>
WM_DEVICE void load_base(const Table& table, const Chunk& chunk, int at, int n, Widened<T, N>& base) {
  if (table.has_base)
    base.template load<false>(base_of(table, chunk), at, n);
  else
    base.clear();
}

// Deltas of one model; elements from the n-th on are 0. `count`: count elements that are not finite.
template <class T, int N>
WM_DEVICE void load_deltas(const Table& table, const Chunk& chunk, int model, const Widened<T, N>& base, int at, int n,
                           bool count, T (&d)[N]) {
  Widened<T, N> x;
  x.template load<false>(input_of(table, chunk, model), at, n);
  bool finite = true;
  WM_UNROLL
  for (int e = 0; e < N; ++e) {
    const T delta = x.get(e) - base.get(e);
    finite &= is_finite(delta);
    d[e] = settle_nonfinite(delta, table.policy);
  }
  if (!finite && count) count_nonfinite(table, chunk, model, x, base);
}

// In the rare case that a result is not finite: counts those of which all operands are finite. With the policy `base`,
// a result that is not finite becomes the base's element. The operands are read again, so that no other pack has to
// keep them in registers.
template <class T, int N>
WM_DEVICE void settle_results(const Table& table, const Chunk& chunk, int at, int n, T (&y)[N]) {
  const Bits<T> limit = overflow_key<T>(table.out);
  bool all = true;
  WM_UNROLL
  for (int e = 0; e < N; ++e) all &= e >= n || magnitude_key(y[e]) < limit;
  if (all) return;
  Widened<T, N> operand;
  load_base(table, chunk, at, n, operand);
  uint32_t unsound = 0, large = 0;  // a bit for each element
  WM_UNROLL
  for (int e = 0; e < N; ++e) {
    large |= uint32_t(e < n && magnitude_key(y[e]) >= limit) << e;
    unsound |= uint32_t(!is_finite(operand.get(e))) << e;
    const bool back = table.has_base && table.policy == Nonfinite::base;
    y[e] = back && (large >> e & 1) ? operand.get(e) : y[e];
  }
  WM_ROLLED
  for (int k = 0; k < table.models; ++k) {
    operand.template load<false>(input_of(table, chunk, k), at, n);
    WM_UNROLL
    for (int e = 0; e < N; ++e) unsound |= uint32_t(!is_finite(operand.get(e))) << e;
  }
  if (table.nonfinite) add_nonfinite(table, chunk, table.models + 1, __popc(large & ~unsound));
}

// Sets the elements that a model's rule drops to 0. The pack must lie within the elements of one Philox call.
template <class T, int N>
WM_DEVICE void drop(const Rule<T>& rule, int64_t flat, T (&d)[N]) {
  const uint32_t drawn = rule.drawn ? drawn_bits(rule, flat) >> (flat % kPhiloxLanes) : 0xffu;
  WM_UNROLL
  for (int e = 0; e < N; ++e) {
    const bool kept = (drawn >> e & 1) && magnitude_key(d[e]) >= (flat + e < rule.tie_end ? rule.before : rule.after);
    d[e] = kept ? d[e] : T(0);
  }
}

}  // namespace warpmerge
