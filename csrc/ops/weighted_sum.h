// A weighted sum on one element: y = sum_k c_k x_k, or with a base y = x_0 + sum_k c_k (x_k - x_0).
// python/warpmerge/expr/library.py defines it as an expression.
//
// Terms are added in the order of the models. Two exact rules keep elements that no model changed. With a base, a delta
// of 0 leaves the base's bits, -0 included. Without a base, if the coefficients are those of a mean (`agree`) and all
// inputs of an element are bit-identical, the output is that input. Rounded sums alone would miss it by an ulp now and
// then.
#pragma once

#include "common.h"

namespace warpmerge {

// The base plus a merged delta. A delta of 0 leaves the base's bits alone.
template <class T>
WM_FN T add_delta(T base, T delta) {
  return delta == T(0) ? base : base + delta;
}

template <class T>
WM_FN Bits<T> differing_bits(T a, T b) {
  return bit_cast<Bits<T>>(a) ^ bit_cast<Bits<T>>(b);
}

}  // namespace warpmerge
