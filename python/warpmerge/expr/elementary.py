"""Exponentials and logarithms, expanded into basic operations, so that they have the same bits everywhere.

The functions of a mathematical library differ from machine to machine. Each function here is a fixed sequence of
additions, multiplications and the like, each rounded once. It reduces its argument to a small range, where a short
series is exact to a few ulp. All constants are literals. csrc/ops/elementary.h has the same operations in the same
order: a CPU carries out each function as one operation, other backends carry out the expansion.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from .expression import Expr, expm1, expm1_near, literal, log, maximum, minimum, nearest, where
from .operations import Op


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule; coefficients from the lowest power on."""
    highest, *rest = reversed(list(coefficients))
    return functools.reduce(lambda total, c: total * x + literal(c), rest, literal(highest))


def _nearest(x: Expr, fp64: bool) -> Expr:
    big = literal(1.5 * 2.0 ** (52 if fp64 else 23))  # adding it leaves no bits for a fraction
    return (x + big) - big


# ln 2 in two parts: products of the first with an exponent are exact.
_LN2 = {False: (0.693359375, -2.12194440054690583e-4), True: (6.93147180369123816490e-01, 1.90821492927058770002e-10)}


def _reduced(x: Expr, fp64: bool) -> tuple[Expr, Expr]:
    """2^n and r with x = n ln 2 + r and |r| <= ln(2) / 2, for x within the range of exp."""
    low, high = (-708.0, 709.0) if fp64 else (-87.0, 88.0)
    x = minimum(maximum(x, literal(low)), literal(high))
    n = nearest(x * literal(1 / math.log(2)))
    coarse, fine = map(literal, _LN2[fp64])
    return Expr(Op.POW2, (n,)), (x - n * coarse) - n * fine


def _exp(x: Expr, fp64: bool) -> Expr:
    power, r = _reduced(x, fp64)
    # The first term left out is below 2^-28 and 2^-57 of the sum.
    return _polynomial(r, [1 / math.factorial(i) for i in range(14 if fp64 else 8)]) * power


def _expm1_near(x: Expr, fp64: bool) -> Expr:
    return x * _polynomial(x, [1 / math.factorial(i + 1) for i in range(15 if fp64 else 8)])


def _expm1(x: Expr, fp64: bool) -> Expr:
    power, r = _reduced(x, fp64)
    return expm1_near(r) * power + (power - 1)  # the last one is 0 near 0


def _log1p_near(f: Expr, fp64: bool) -> Expr:
    """log(1 + f) for 1 + f within [1 / sqrt 2, sqrt 2]: 2 artanh(f / (2 + f))."""
    s = f / (f + 2)
    return s * _polynomial(s * s, [2 / (2 * i + 1) for i in range(11 if fp64 else 6)])


def _log(x: Expr, fp64: bool) -> Expr:
    e = Expr(Op.EXPONENT, (x,))
    m = x * Expr(Op.POW2, (-e,))
    large = m > literal(math.sqrt(2))
    e = e + large
    m = where(large, m * literal(0.5), m)
    coarse, fine = map(literal, _LN2[fp64])
    return e * coarse + (_log1p_near(m - 1, fp64) + e * fine)


def _log1p(x: Expr, fp64: bool) -> Expr:
    return where(abs(x) < literal(0.25), _log1p_near(x, fp64), log(x + 1))


def _tanh(x: Expr, fp64: bool) -> Expr:
    e = expm1(minimum(abs(x), 20) * 2)
    t = e / (e + 2)
    return where(x < 0, -t, t)


def _divergence_near(s: Expr, fp64: bool) -> Expr:
    square = s * s
    rest = _polynomial(square, [1 / (2 * i + 3) for i in range(9 if fp64 else 4)])  # (artanh(s) - s) / s^3
    return square * ((s + 1) * s * rest + 1)


EXPANSIONS: dict[int, Callable[[Expr, bool], Expr]] = {
    Op.EXP: _exp,
    Op.EXPM1: _expm1,
    Op.EXPM1_NEAR: _expm1_near,
    Op.LOG: _log,
    Op.LOG1P: _log1p,
    Op.TANH: _tanh,
    Op.DIVERGENCE_NEAR: _divergence_near,
    Op.NEAREST: _nearest,
}
