// The instructions of programs on one element. python/warpmerge/expr/operations.py defines them; operations.h has their
// numbers.
//
// Each instruction is rounded once, so programs have the same bits on all backends. The interpreters of csrc/cpu and
// csrc/cuda make their loops of these functions. KEEP, DRAW, ROW, COLUMN and RANK depend on the element's place and are
// not here: masks.h has masks, philox.h draws, select.h ranks. elementary.h has the functions after RANK.
#pragma once

#include <math.h>

#include "common.h"
#include "operations.h"

namespace warpmerge {

// The place of the exponent field, and 1.5 * 2^fraction: if it is added to a small whole number, that number is in the
// lowest bits of the sum.
template <class T>
struct ExponentField;
template <>
struct ExponentField<float> {
  static constexpr int fraction = 23, bias = 127;
  static constexpr float big = 12582912.0f;
};
template <>
struct ExponentField<double> {
  static constexpr int fraction = 52, bias = 1023;
  static constexpr double big = 6755399441055744.0;
};

WM_FN float square_root(float a) { return ::sqrtf(a); }
WM_FN double square_root(double a) { return ::sqrt(a); }

template <class T>
WM_FN T absolute(T a) {
  return bit_cast<T>(magnitude_key(a));
}

template <class T>
WM_FN T negated(T a) {
  return bit_cast<T>(bit_cast<Bits<T>>(a) ^ (FloatTraits<T>::magnitude + 1));
}

// The second operand if both are equal or one is NaN.
template <class T>
WM_FN T lesser(T a, T b) {
  return a < b ? a : b;
}
template <class T>
WM_FN T greater(T a, T b) {
  return a > b ? a : b;
}

// 2^a for a whole a, if that is a normal number. The sum is exact, and the shift drops all but the exponent.
template <class T>
WM_FN T power_of_two(T a) {
  using Field = ExponentField<T>;
  return bit_cast<T>(bit_cast<Bits<T>>(a + (Field::big + T(Field::bias))) << Field::fraction);
}

// The unbiased exponent field: the field becomes the fraction of a number from 2^fraction on.
template <class T>
WM_FN T exponent_of(T a) {
  using Field = ExponentField<T>;
  const Bits<T> unit = Bits<T>(Field::fraction + Field::bias) << Field::fraction;
  return bit_cast<T>((magnitude_key(a) >> Field::fraction) | unit) - (bit_cast<T>(unit) + T(Field::bias));
}

// The key by which KEEP and RANK order elements. Every NaN has the key of the canonical NaN.
template <class T>
WM_FN Bits<T> canonical_key(T a) {
  const Bits<T> key = magnitude_key(a);
  return key > FloatTraits<T>::infinity ? FloatTraits<T>::quiet_nan : key;
}

// A value as measurements take it: one that is not finite counts as 0.
template <class T>
WM_FN T measured(T a) {
  return is_finite(a) ? a : T(0);
}

// The instructions that depend on nothing but their operands: those before KEEP.
template <FormulaOp kOp, class T>
WM_FN T calculate(T a, T b, T c) {
  static_assert(kOp < FormulaOp::keep, "an instruction of operands alone");
  if constexpr (kOp == FormulaOp::add)
    return a + b;
  else if constexpr (kOp == FormulaOp::sub)
    return a - b;
  else if constexpr (kOp == FormulaOp::mul)
    return a * b;
  else if constexpr (kOp == FormulaOp::div)
    return a / b;
  else if constexpr (kOp == FormulaOp::sqrt)
    return square_root(a);
  else if constexpr (kOp == FormulaOp::abs)
    return absolute(a);
  else if constexpr (kOp == FormulaOp::neg)
    return negated(a);
  else if constexpr (kOp == FormulaOp::min)
    return lesser(a, b);
  else if constexpr (kOp == FormulaOp::max)
    return greater(a, b);
  else if constexpr (kOp == FormulaOp::lt)
    return a < b ? T(1) : T(0);
  else if constexpr (kOp == FormulaOp::le)
    return a <= b ? T(1) : T(0);
  else if constexpr (kOp == FormulaOp::eq)
    return a == b ? T(1) : T(0);
  else if constexpr (kOp == FormulaOp::where)
    return a != T(0) ? b : c;
  else if constexpr (kOp == FormulaOp::pow2)
    return power_of_two(a);
  else {
    static_assert(kOp == FormulaOp::exponent, "an operation that this list lacks");
    return exponent_of(a);
  }
}

// Calls body(Instruction<op>()) for an instruction that depends on nothing but its operands.
template <FormulaOp kOp>
struct Instruction {
  static constexpr FormulaOp op = kOp;
};
template <class Body>
WM_FN void visit_calculation(FormulaOp op, Body&& body) {
  switch (op) {
    case FormulaOp::add:
      return body(Instruction<FormulaOp::add>());
    case FormulaOp::sub:
      return body(Instruction<FormulaOp::sub>());
    case FormulaOp::mul:
      return body(Instruction<FormulaOp::mul>());
    case FormulaOp::div:
      return body(Instruction<FormulaOp::div>());
    case FormulaOp::sqrt:
      return body(Instruction<FormulaOp::sqrt>());
    case FormulaOp::abs:
      return body(Instruction<FormulaOp::abs>());
    case FormulaOp::neg:
      return body(Instruction<FormulaOp::neg>());
    case FormulaOp::min:
      return body(Instruction<FormulaOp::min>());
    case FormulaOp::max:
      return body(Instruction<FormulaOp::max>());
    case FormulaOp::lt:
      return body(Instruction<FormulaOp::lt>());
    case FormulaOp::le:
      return body(Instruction<FormulaOp::le>());
    case FormulaOp::eq:
      return body(Instruction<FormulaOp::eq>());
    case FormulaOp::where:
      return body(Instruction<FormulaOp::where>());
    case FormulaOp::pow2:
      return body(Instruction<FormulaOp::pow2>());
    case FormulaOp::exponent:
      return body(Instruction<FormulaOp::exponent>());
    default:
      return;
  }
}

}  // namespace warpmerge
