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
