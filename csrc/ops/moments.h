// Per input: sums of |d| and d^2 (order: reduce.h), the sum of |d| over kept elements, extremes and counts.
#pragma once

#include "common.h"

namespace warpmerge {

struct Moments {
  double sum_abs = 0, sum_sq = 0, kept_abs = 0;
  double min = 0, max = 0;  // of d; 0 for an empty tensor
  int64_t nonzero = 0, kept = 0;
};

// Signed integers that order like the floats they come from: extremes become integer reductions, which vectorise
// without licence to reorder arithmetic.
template <class T>
struct OrderedOf;
template <>
struct OrderedOf<float> {
  using type = int32_t;
};
template <>
struct OrderedOf<double> {
  using type = int64_t;
};
template <class T>
using Ordered = typename OrderedOf<T>::type;

template <class T>
WM_FN Ordered<T> ordered(T x) {
  const Ordered<T> i = bit_cast<Ordered<T>>(x);
  return i ^ Ordered<T>(Bits<T>(i >> (8 * sizeof(T) - 1)) & FloatTraits<T>::magnitude);
}

// The inverse, with -0 read as +0.
template <class T>
WM_FN T from_ordered(Ordered<T> i) {
  return bit_cast<T>(i ^ Ordered<T>(Bits<T>(i >> (8 * sizeof(T) - 1)) & FloatTraits<T>::magnitude)) + T(0);
}

}  // namespace warpmerge
