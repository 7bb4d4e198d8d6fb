"""Fusion: the most important elements are the model's, all others stay the base's.

The importance of an element is the magnitude of its delta times the divergence of its row: how far the softmax of the
row changed. Elements whose importance is far above the median are taken from the model.

The first read adds up exponentials of each row, the second one the divergence, the third one finds quartiles of the
importance, the fourth one merges. A fine-tune changes little, so a plain formula would subtract nearly equal numbers.
If the operands are close, differences of exponentials and the divergence come from series instead.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..expr.expression import Expr, base, delta, divergence_near, exp, expm1_near, literal, log, row, where
from ..expr.formula import Formula
from ..requests import Copy, KthLargest, Map, Reduce
from .base import Base, Steps, TensorInfo
from .registry import method
from .rows import each

SMOOTHING = 1e-8  # added to every probability (mergekit)
LARGE = 1e27  # exponentials of rows whose sum is below this, and its inverse, are normal float32 numbers
NEAR = 0.35  # differences of exponentials of numbers this close come from a series
ROUNDING = 2.0**-19  # a difference of logarithms that is a smaller share of the delta is rounding


class _Softmax:
    """The softmax of the rows of base and model: exp(a) / sum exp(a) and exp(a + b) / sum exp(a + b).

    a, b: x_0 and the delta, less the `shifts`: the rows' largest elements, and how these change. None: no shift, for
    rows whose elements are small.
    """

    def __init__(self, shifts: tuple[Any, Any] | None) -> None:
        self.shifted = shifts is not None
        self.a, self.b = base(), delta(0)
        if shifts is not None:
            self.a, self.b = self.a - row(shifts[0]), self.b - row(shifts[1])

    def exponentials(self) -> tuple[Expr, Expr, Expr]:
        """exp(a), exp(a + b), and the second minus the first."""
        old, new = exp(self.a), exp(self.a + self.b)
        return old, new, where(abs(self.b) < literal(NEAR), old * expm1_near(self.b), new - old)

    def sums(self) -> tuple[Expr, ...]:
        """The terms of each row's sums: exp(a), the difference, and exp(a + b) unless its sum follows from theirs."""
        old, new, difference = self.exponentials()
        return (old, difference, new) if self.shifted else (old, difference)

    def logarithm(self, constant: Any) -> Expr:
        """ln(p / q): the delta less a constant of the row. 0 if the rest is rounding."""
        ratio = self.b - row(constant)
        return where(abs(ratio) <= abs(delta(0)) * literal(ROUNDING), 0, ratio)

    def divergence(self, constant: Any, old: Any, new: Any) -> Expr:
        """p' ln(p' / q') - p' + q' with p' = p + 1e-8: at least 0, and its sum is that of p' ln(p' / q').

        old, new: of each row, the sums of exp(a) and exp(a + b).
        """
        v = self.logarithm(constant)
        q = exp(self.a) * row(1 / old)
        difference = where(abs(v) < literal(NEAR), q * expm1_near(v), exp(self.a + self.b) * row(1 / new) - q)
        q1 = q + literal(SMOOTHING)
        p1 = q1 + difference
        both = p1 + q1
        s = difference / both
        return where(abs(s) < literal(0.13), both * divergence_near(s), p1 * log(p1 / q1) - difference)


def constants(old: Any, difference: Any, new: Any = None) -> Any:
    """Of each row the logarithm of sum exp(a + b) / sum exp a, from the sums of `exponentials`."""
    import numpy as np

    near = _is_near(old, difference)
    logarithms = each(math.log1p, np.where(near, difference / old, 0.0))
    return logarithms if new is None else np.where(near, logarithms, each(math.log, new / old))


def _is_near(old: Any, difference: Any) -> Any:
    """Whether the two sums of a row are so close that `old + difference` is exact enough for the sum of exp(a + b)."""
    return abs(difference) < 0.5 * old


def _row_sums(values: Sequence[Expr], columns: int) -> Reduce:
    return Reduce("sum", Formula(values, columns), "row", "float64")


def _divergences(tensor: TensorInfo) -> Generator[Reduce, Any, Any]:
    """The divergence of each row, (rows,) float64. Two reads; four if the exponentials of a row must be shifted."""
    columns, softmax = tensor.columns, _Softmax(None)
    old, difference = sums = yield _row_sums(softmax.sums(), columns)
    plain = (old < LARGE) & (old > 1 / LARGE) & _is_near(old, difference)
    if plain.all():
        new = old + difference
    else:
        largest_0, largest_1 = yield Reduce("max", Formula((base(), base() + delta(0)), columns), "row")
        softmax = _Softmax((largest_0, largest_1 - largest_0))
        old, _, new = sums = yield _row_sums(softmax.sums(), columns)
    (kl,) = yield _row_sums((softmax.divergence(constants(*sums), old, new),), columns)
    return kl


def threshold(first: float, median: float, third: float) -> float:
    return median + 1.5 * (third - first)


def quartiles(count: int) -> tuple[int, int, int]:
    """Ranks of the quartiles of `count` values, the largest one being 1; those between two values are the lower one."""
    first, second, third = (count - part * (count - 1) // 4 for part in (1, 2, 3))
    return first, second, third


@method(
    "arcee_fusion",
    base=Base.REFERENCE,
    models=(1, 1),
    formula="""y = x_0 + d_1 where I >= median(I) + 1.5 (Q_3(I) - Q_1(I)),  else x_0
I = |d_1| KL_r in row r,  KL_r = sum over the row of p ln(p / q)
p = softmax(row of x_1) + 1e-8,  q = softmax(row of x_0) + 1e-8""",
    paper="Arcee 2025, Arcee Fusion (mergekit)",
    notes=[
        "Rows lie along the last dimension. A vector is one row.",
        "Quartiles are elements: in sorted order the one at floor(q (n - 1)), counted from 0.",
        "A tensor is read six times if a row has elements beyond 60 or its sum of exponentials changes by half.",
    ],
    differences={
        "mergekit": [
            "In tensors of more than a million elements, mergekit estimates the quartiles from random samples.",
            "mergekit rounds the divergence to the dtype of the weights.",
        ]
    },
    presets={"mergekit": {}},
)
def arcee_fusion(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """The base with the model's important elements: large changes in rows whose softmax changes."""
    import numpy as np

    if not tensor.count:
        return Copy()
    kl = yield from _divergences(tensor)
    kl = np.ldexp(kl, -np.frexp(kl.max())[1])  # importances are compared with each other only
    scale, columns = row(kl), tensor.columns
    importance = delta(0) * scale  # with the sign of the delta
    selected = yield KthLargest(quartiles(tensor.count), keep_all_ties=True, of=Formula((importance,) * 3, columns))
    least = threshold(*(s.magnitude(tensor.fp64) for s in selected))
    return Map(Formula((where(abs(delta(0)) * scale < least, 0, delta(0)),), columns), on_deltas=True)
