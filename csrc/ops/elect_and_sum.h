// Elect-and-sum on one element. python/warpmerge/expr/library.py defines it as an expression.
//
// Per model k there are a delta d_k, which is 0 where the mask drops it, and three coefficients, made on the host in
// float64: `value` (weight times rescaling), `vote` and `divisor`.
//
//   election:  s = + if sum_k vote_k d_k >= 0 else -;  model k agrees iff vote_k d_k is not 0 and has sign s
//   merge:     m = lambda * (sum over agreeing value_k d_k) / (sum over agreeing divisor_k, 1 if that is 0)
//
// Without an election every model agrees. The divisor is then the same for all elements, and part of lambda. Sources:
// TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2023, arXiv 2311.03099).
#pragma once

#include "common.h"

namespace warpmerge {

// A vote seen in the elected direction (- for a sum of votes below zero, else +). The model agrees iff it is above
// zero.
template <class T>
WM_FN T toward(T vote, bool negative) {
  return negative ? -vote : vote;
}

// A sum of votes that is NaN has no sign. The result is then NaN, not the sum of the models that happen to agree.
template <class T>
WM_FN T elect_and_sum_delta(T votes, T total, T divisor, T lambda) {
  const T delta = total / (divisor == T(0) ? T(1) : divisor) * lambda;
  return votes == votes ? delta : votes;
}

}  // namespace warpmerge
