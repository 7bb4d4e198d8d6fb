// The sparsify-and-elect family on one element. Per model k: a delta d_k that is already 0 where it was dropped, and
// three coefficients made on the host in float64: `value` (weight times rescaling), `ballot` (its vote) and `divisor`.
//
//   election:  s = + if sum_k ballot_k d_k >= 0 else -;  model k agrees iff ballot_k d_k is not 0 and has sign s
//   merge:     m = lambda * (sum over agreeing value_k d_k) / (sum over agreeing divisor_k, 1 if that is 0)
//
// Without an election every model agrees and the divisor, the same for all elements, is part of lambda.
// Sources: TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2023, arXiv 2311.03099).
#pragma once

#include "common.h"

namespace warpmerge {

template <class T>
WM_FN bool agrees(T ballot, T votes) {
  return ((votes >= T(0)) & (ballot > T(0))) | (!(votes >= T(0)) & (ballot < T(0)));  // no branches: it vectorises
}

template <class T>
WM_FN T consensus_delta(T total, T divisor, T lambda) {
  return total / (divisor == T(0) ? T(1) : divisor) * lambda;
}

}  // namespace warpmerge
