"""Fusion: a model's most important changes are taken whole, the others not at all."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from ..formula import Expr, Formula, base, delta, exp, expm1, log, maximum, row, where
from ..ops import Apply, Copy, Rows, Select
from .base import Base, Steps, TensorInfo
from .registry import method
from .rows import each

SMOOTHING = 1e-8  # added to every probability (mergekit)
LARGE = 64.0  # exponentials of weights up to this, and the inverse of their sums, are normal float32 numbers
ROUNDING = 2.0**-19  # a logarithm that is this share of what it is a difference of is rounding


@dataclass(frozen=True)
class _Softmax:
    """Of the rows of base and model: a - log(sum exp a) is what x_0 is as a probability, a + b is x_1 - max x_1.

    a, b: x_0 and the delta, shifted if rows have large elements. sums: of exp a, of exp(a + b), and of the difference.
    """

    a: Expr
    b: Expr
    sums: Any

    def logarithm(self) -> Expr:
        """ln(p / q): the delta up to a constant of the row, 0 where that constant is all there is."""
        import numpy as np

        old, new, difference = self.sums
        near = np.abs(difference) < 0.5 * old
        constant = np.where(near, each(math.log1p, np.where(near, difference / old, 0.0)), each(math.log, new / old))
        ratio = self.b - row(constant)
        return where(abs(ratio) <= abs(delta(0)) * ROUNDING, 0, ratio)

    def divergence(self, wide: bool) -> Expr:
        """p' ln(p' / q') - p' + q' with p' = p + 1e-8: at least 0, and its sum is that of p' ln(p' / q')."""
        v = self.logarithm()
        p, q = exp(self.a + self.b) * row(1 / self.sums[1]), exp(self.a) * row(1 / self.sums[0])
        difference = where(abs(v) < 1, q * expm1(v), p - q)
        p1, q1 = p + SMOOTHING, q + SMOOTHING
        u = difference / q1
        return where(abs(u) < 0.3, q1 * _excess(u, wide), p1 * log(p1 / q1) - difference)


def _exponentials(a: Expr, b: Expr) -> tuple[Expr, Expr, Expr]:
    """exp(a), exp(a + b), and the second minus the first."""
    old, new = exp(a), exp(a + b)
    return old, new, where(abs(b) < 1, old * expm1(b), new - old)


def _excess(u: Expr, wide: bool) -> Expr:
    """(1 + u) ln(1 + u) - u for |u| < 0.3, from ln(1 + u) = 2 artanh(s) with s = u / (2 + u)."""
    s = u / (u + 2)
    square, last = s * s, 10 if wide else 5
    rest = square * (1 / (2 * last + 3))
    for i in reversed(range(1, last)):
        rest = (rest + 1 / (2 * i + 3)) * square
    rest = rest + 1 / 3  # (artanh(s) - s) / s^3
    return square * 2 * ((s + 1) * s * rest + 1) / (1 - s)


def _softmax(tensor: TensorInfo) -> Generator[Rows, Any, _Softmax]:
    """Reads the tensor once, or three times if it has elements whose exponentials must be shifted."""
    x0, d = base(), delta(0)
    is_large = maximum(abs(x0), abs(x0 + d)) > LARGE
    *sums, large = yield Rows(Formula((*_exponentials(x0, d), is_large), tensor.columns))
    if not large.any():
        return _Softmax(x0, d, sums)
    largest_0, largest_1 = yield Rows(Formula((x0, x0 + d), tensor.columns), largest=True)
    a, b = x0 - row(largest_0), d - row(largest_1 - largest_0)
    sums = yield Rows(Formula(_exponentials(a, b), tensor.columns))
    return _Softmax(a, b, sums)


def threshold(first: float, median: float, third: float) -> float:
    return median + 1.5 * (third - first)


def quartiles(count: int) -> tuple[int, int, int]:
    """Ranks of the quartiles of `count` values, the largest one being 1; those between two values are the lower one."""
    return tuple(count - part * (count - 1) // 4 for part in (1, 2, 3))


@method(
    "arcee_fusion",
    base=Base.REFERENCE,
    models=(1, 1),
    passes=4,
    formula="""y = x_0 + d_1 where I >= median(I) + 1.5 (Q_3(I) - Q_1(I)),  x_0 elsewhere
I = |d_1| KL_r for the elements of row r,  KL_r = sum over the row of p ln(p / q)
p = softmax(row of x_1) + 1e-8,  q = softmax(row of x_0) + 1e-8""",
    paper="Arcee 2025, Arcee Fusion (mergekit)",
    notes=[
        "Rows are along the last dimension; a vector is one row.",
        "Quartiles are elements: of the sorted I the one at floor(q (n - 1)), counted from 0.",
        "Tensors with elements beyond 64 are read six times.",
    ],
    differences={
        "mergekit": "Quartiles of tensors of more than a million elements are estimated there, from random samples, "
        "and the divergence is rounded to the type of the weights."
    },
    presets={"mergekit": {}},
)
def arcee_fusion(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Takes one model's large changes in rows whose softmax they change, and keeps the rest of the base."""
    import numpy as np

    if not tensor.count:
        return Copy()
    softmax = yield from _softmax(tensor)
    (kl,) = yield Rows(Formula((softmax.divergence(tensor.wide),), tensor.columns))
    kl = np.ldexp(kl, -np.frexp(kl.max())[1])  # importances are compared with each other only
    importance = abs(delta(0)) * row(kl)
    selected = yield Select(quartiles(tensor.count), keep_all_ties=True, of=Formula((importance,) * 3, tensor.columns))
    least = threshold(*(s.magnitude(tensor.wide) for s in selected))
    return Apply(Formula((where(importance < least, 0, delta(0)),), tensor.columns), relative=True)
