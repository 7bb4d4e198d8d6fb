// y = sum_k c_k x_k, or with a base y = x_0 + sum_k c_k (x_k - x_0); terms are added in the order of the models.
// Two exact rules: an element that no model changes keeps the base's bits (-0 included), and where the coefficients are
// those of a mean (`agree`) an element on which all inputs agree is that input.
#pragma once

#include "common.h"

namespace warpmerge {

// Base plus a merged delta: a delta of zero leaves the base's bits alone.
template <class T>
WM_FN T add_delta(T base, T delta) {
  return delta == T(0) ? base : base + delta;
}

template <class T>
WM_FN Bits<T> differing_bits(T a, T b) {
  return bit_cast<Bits<T>>(a) ^ bit_cast<Bits<T>>(b);
}

}  // namespace warpmerge
