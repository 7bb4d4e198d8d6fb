// Exponentials and logarithms on one element, as fixed sequences of operations that are each rounded once.
//
// The functions of mathematical libraries differ from machine to machine, so none is used. A function reduces its
// argument to a small range and evaluates a short series there; docs/numerics.md ("Formulas") has the errors.
// python/warpmerge/expr/elementary.py defines the sequences. The steps here are the same, in the same order, so the
// bits are the same. On a CPU each function is one instruction of a program, and its intermediate values stay in
// registers. Other backends carry out the expansion into basic operations. In exchange each sequence is written down
// twice; tests/expr/test_elementary.py compares them.
#pragma once

#include "formula.h"

namespace warpmerge {

// The numbers of terms of the series, and ln 2 in two parts. Products of the coarse part with an exponent are exact.
template <class T>
struct Elementary;
template <>
struct Elementary<float> {
  static constexpr float low = -87.0f, high = 88.0f;  // the range of exp
  static constexpr float ln2_coarse = 0.693359375f, ln2_fine = -2.12194440054690583e-4f;
  static constexpr int exp = 8, expm1 = 8, log1p = 6, artanh = 4;
};
template <>
struct Elementary<double> {
  static constexpr double low = -708.0, high = 709.0;
  static constexpr double ln2_coarse = 6.93147180369123816490e-01, ln2_fine = 1.90821492927058770002e-10;
  static constexpr int exp = 14, expm1 = 15, log1p = 11, artanh = 9;
};

// Coefficients of series, rounded to float64 and then to T.
struct OfExp {
  static constexpr double at(int i) {
    double factorial = 1;
    for (int k = 2; k <= i; ++k) factorial *= k;
    return 1 / factorial;
  }
};
struct OfExpm1 {
  static constexpr double at(int i) { return OfExp::at(i + 1); }
};
struct OfLog1p {
  static constexpr double at(int i) { return 2.0 / (2 * i + 1); }
};
struct OfArtanh {
  static constexpr double at(int i) { return 1.0 / (2 * i + 3); }
};

// Horner's rule for the coefficients from kFirst up to, but not including, kEnd.
template <class Series, int kFirst, int kEnd, class T>
WM_FN T polynomial(T x) {
  constexpr T coefficient = T(Series::at(kFirst));
  if constexpr (kFirst + 1 == kEnd)
    return coefficient;
  else
    return polynomial<Series, kFirst + 1, kEnd>(x) * x + coefficient;
}

// The whole number nearest to x, of two the even one, for |x| < 2^22.
template <class T>
WM_FN T nearest(T x) {
  constexpr T kBig = ExponentField<T>::big;
  return (x + kBig) - kBig;
}

// x = n ln 2 + rest with |rest| <= ln(2) / 2.
template <class T>
struct Reduced {
  T power;  // 2^n
  T rest;
};
template <class T>
WM_FN Reduced<T> reduced(T x) {
  using E = Elementary<T>;
  constexpr T kInverse = T(1 / 0.6931471805599453);
  x = lesser(greater(x, E::low), E::high);
  const T n = nearest(x * kInverse);
  return {power_of_two(n), (x - n * E::ln2_coarse) - n * E::ln2_fine};
}

template <class T>
WM_FN T expm1_near(T x) {
  return x * polynomial<OfExpm1, 0, Elementary<T>::expm1>(x);
}

template <class T>
WM_FN T exponential(T x) {
  const Reduced<T> r = reduced(x);
  return polynomial<OfExp, 0, Elementary<T>::exp>(r.rest) * r.power;
}

template <class T>
WM_FN T exponential_minus_1(T x) {
  const Reduced<T> r = reduced(x);
  return expm1_near(r.rest) * r.power + (r.power - T(1));
}

template <class T>
WM_FN T log1p_near(T f) {
  const T s = f / (f + T(2));
  return s * polynomial<OfLog1p, 0, Elementary<T>::log1p>(s * s);
}

template <class T>
WM_FN T logarithm(T x) {
  using E = Elementary<T>;
  const T exponent = exponent_of(x), m = x * power_of_two(negated(exponent));
  const bool large = m > T(1.4142135623730951);
  const T e = exponent + (large ? T(1) : T(0));
  return e * E::ln2_coarse + (log1p_near((large ? m * T(0.5) : m) - T(1)) + e * E::ln2_fine);
}

template <class T>
WM_FN T logarithm_of_1_plus(T x) {
  const T near = log1p_near(x), far = logarithm(x + T(1));
  return absolute(x) < T(0.25) ? near : far;
}

template <class T>
WM_FN T hyperbolic_tangent(T x) {
  const T e = exponential_minus_1(lesser(absolute(x), T(20)) * T(2));
  const T t = e / (e + T(2));
  return x < T(0) ? negated(t) : t;
}

template <class T>
WM_FN T divergence_near(T s) {
  const T square = s * s, rest = polynomial<OfArtanh, 0, Elementary<T>::artanh>(square);
  return square * ((s + T(1)) * s * rest + T(1));
}

// A function of one operand.
template <FormulaOp kOp, class T>
WM_FN T function_of(T a) {
  if constexpr (kOp == FormulaOp::exp)
    return exponential(a);
  else if constexpr (kOp == FormulaOp::expm1)
    return exponential_minus_1(a);
  else if constexpr (kOp == FormulaOp::expm1_near)
    return expm1_near(a);
  else if constexpr (kOp == FormulaOp::log)
    return logarithm(a);
  else if constexpr (kOp == FormulaOp::log1p)
    return logarithm_of_1_plus(a);
  else if constexpr (kOp == FormulaOp::tanh)
    return hyperbolic_tangent(a);
  else if constexpr (kOp == FormulaOp::divergence_near)
    return divergence_near(a);
  else {
    static_assert(kOp == FormulaOp::nearest, "an operation that this list lacks");
    return nearest(a);
  }
}

// Calls body(constant of the instruction) for one that is a function.
template <class Body>
WM_FN void visit_function(FormulaOp op, Body&& body) {
  switch (op) {
    case FormulaOp::exp:
      return body(Instruction<FormulaOp::exp>());
    case FormulaOp::expm1:
      return body(Instruction<FormulaOp::expm1>());
    case FormulaOp::expm1_near:
      return body(Instruction<FormulaOp::expm1_near>());
    case FormulaOp::log:
      return body(Instruction<FormulaOp::log>());
    case FormulaOp::log1p:
      return body(Instruction<FormulaOp::log1p>());
    case FormulaOp::tanh:
      return body(Instruction<FormulaOp::tanh>());
    case FormulaOp::divergence_near:
      return body(Instruction<FormulaOp::divergence_near>());
    default:
      return body(Instruction<FormulaOp::nearest>());
  }
}

}  // namespace warpmerge
