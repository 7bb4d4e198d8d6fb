// The sparsify-and-elect family on one element. Per model k: a delta d_k that is already 0 where it was dropped, and
// three coefficients made on the host in float64: `value` (weight times rescaling), `vote` (its vote) and `divisor`.
//
//   election:  s = + if sum_k ballot_k d_k >= 0 else -;  model k agrees iff ballot_k d_k is not 0 and has sign s
//   merge:     m = lambda * (sum over agreeing value_k d_k) / (sum over agreeing divisor_k, 1 if that is 0)
//
// Without an election every model agrees and the divisor, the same for all elements, is part of lambda.
// Sources: TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2023, arXiv 2311.03099).
#pragma once

#include "common.h"

namespace warpmerge {

// A vote seen in the elected direction (- for votes below zero, else +): the model agrees iff this is above zero.
template <class T>
WM_FN T toward(T vote, bool negative) {
  return negative ? -vote : vote;
}

// Votes that are NaN have no sign: the result is NaN, not the sum of those who happen to agree.
template <class T>
WM_FN T elect_and_sum_delta(T votes, T total, T divisor, T lambda) {
  const T delta = total / (divisor == T(0) ? T(1) : divisor) * lambda;
  return votes == votes ? delta : votes;
}

}  // namespace warpmerge
