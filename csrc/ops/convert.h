// Storage types to the compute type and back. Widening is exact; RoundTo rounds once, to nearest even, on integers,
// subnormals included. Every NaN leaves as the canonical quiet NaN of its type, so that results do not depend on which
// NaN a processor prefers.
#pragma once

#include "common.h"

namespace warpmerge {

// A 16-bit storage element, by its format.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

WM_FN float widen(bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

WM_FN float widen(f16 x) {
  const uint32_t shifted = uint32_t(x.bits & 0x7fff) << 13;
  const float scaled = bit_cast<float>(shifted) * bit_cast<float>(0x77800000u);  // 2^112: rebias, exact
  const uint32_t special = shifted | FloatTraits<float>::infinity;
  const uint32_t magnitude = shifted >= 0x0f800000u ? special : bit_cast<uint32_t>(scaled);
  return bit_cast<float>(magnitude | uint32_t(x.bits & 0x8000) << 16);
}

WM_FN float widen(float x) { return x; }
WM_FN double widen(double x) { return x; }

// A double rounded to float so that a second rounding to at most 22 bits gives the correctly rounded result of the
// double: inexact values keep their last bit set ("round to odd").
WM_FN float round_to_odd(double x) {
  const float nearest = float(x);
  const double back = double(nearest);
  uint32_t u = bit_cast<uint32_t>(nearest);
  const bool too_large = magnitude_key(back) > magnitude_key(x);
  const uint32_t odd = (u - uint32_t(too_large)) | 1u;
  u = back != x ? odd : u;
  return x != x ? bit_cast<float>(FloatTraits<float>::quiet_nan) : bit_cast<float>(u);
}

template <class To>
struct RoundTo;

template <>
struct RoundTo<bf16> {
  WM_FN bf16 from(float x) {
    const uint32_t u = bit_cast<uint32_t>(x);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const bool nan = (u & FloatTraits<float>::magnitude) > FloatTraits<float>::infinity;
    return bf16{uint16_t(nan ? 0x7fc0u : rounded)};
  }
  WM_FN bf16 from(double x) { return from(round_to_odd(x)); }
};

template <>
struct RoundTo<f16> {
  WM_FN f16 from(float x) {
    const uint32_t u = bit_cast<uint32_t>(x);
    const uint32_t a = u & FloatTraits<float>::magnitude;
    // Adding 0.5 leaves exactly the bits that a subnormal half keeps, rounded to nearest even by the adder.
    const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(a) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
    uint32_t h = a < 0x38800000u ? small : normal;  // below 2^-14
    h = a >= 0x477ff000u ? 0x7c00u : h;             // 65520 and above round to infinity
    h |= (u >> 16) & 0x8000u;
    h = a > FloatTraits<float>::infinity ? 0x7e00u : h;
    return f16{uint16_t(h)};
  }
  WM_FN f16 from(double x) { return from(round_to_odd(x)); }
};

template <>
struct RoundTo<float> {
  WM_FN float from(float x) {
    return magnitude_key(x) > FloatTraits<float>::infinity ? bit_cast<float>(FloatTraits<float>::quiet_nan) : x;
  }
  WM_FN float from(double x) { return from(float(x)); }
};

template <>
struct RoundTo<double> {
  WM_FN double from(double x) {
    return magnitude_key(x) > FloatTraits<double>::infinity ? bit_cast<double>(FloatTraits<double>::quiet_nan) : x;
  }
  WM_FN double from(float x) { return from(double(x)); }
};

// The least magnitude key of T whose value does not round to a finite number of `dtype`: half a unit in the last place
// above the largest one. Infinities and NaN have larger keys.
template <class T>
WM_FN Bits<T> overflow_key(Dtype dtype) {
  if constexpr (sizeof(T) == sizeof(float))
    return dtype == Dtype::f16 ? 0x477ff000u : dtype == Dtype::bf16 ? 0x7f7f8000u : FloatTraits<float>::infinity;
  else
    return dtype == Dtype::f16    ? 0x40effe0000000000ull
           : dtype == Dtype::bf16 ? 0x47eff00000000000ull
           : dtype == Dtype::f32  ? 0x47effffff0000000ull
                                  : FloatTraits<double>::infinity;
}

// Calls `body` with a value of the storage type that `dtype` names: the one place where a code becomes a type.
template <class Body>
WM_FN auto visit(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::f16:
      return body(f16{});
    case Dtype::bf16:
      return body(bf16{});
    case Dtype::f64:
      return body(double{});
    default:
      return body(float{});
  }
}

}  // namespace warpmerge
