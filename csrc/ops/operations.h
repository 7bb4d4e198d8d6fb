// The operations of expressions. Made by `python -m warpmerge.expr.operations`; do not edit.
#pragma once

namespace warpmerge {

enum class FormulaOp : int {
  // a + b
  add = 0,
  // a - b
  sub = 1,
  // a * b
  mul = 2,
  // a / b
  div = 3,
  // the square root of a
  sqrt = 4,
  // a with the sign bit cleared
  abs = 5,
  // a with the sign bit flipped
  neg = 6,
  // a if a < b else b
  min = 7,
  // a if a > b else b
  max = 8,
  // 1 if a < b else 0
  lt = 9,
  // 1 if a <= b else 0
  le = 10,
  // 1 if a == b else 0
  eq = 11,
  // b if a != 0 else c
  where = 12,
  // 2^a for a whole a with a normal result
  pow2 = 13,
  // the unbiased exponent field of a: floor(log2 |a|) of a normal number
  exponent = 14,
  // a where mask `payload` keeps it, else 0
  keep = 15,
  // 16 random bits, 0 to 65535, of the stream `payload`
  draw = 16,
  // the entry of vector `payload` for the element's row
  row = 17,
  // the entry of vector `payload` for the element's column
  column = 18,
  // how many elements of the row have a smaller |a|, or an equal one and a lower column
  rank = 19,
  // e^a
  exp = 20,
  // e^a - 1
  expm1 = 21,
  // e^a - 1 for |a| < 0.35
  expm1_near = 22,
  // the natural logarithm of a normal number above 0
  log = 23,
  // log(1 + a) for a > -1
  log1p = 24,
  // the hyperbolic tangent of a
  tanh = 25,
  // (1 + a) artanh(a) - a for |a| < 0.15
  divergence_near = 26,
  // the whole number nearest to a, of two the even one, for |a| < 2^22
  nearest = 27,
};
constexpr FormulaOp kLastOperation = FormulaOp::nearest;

}  // namespace warpmerge
