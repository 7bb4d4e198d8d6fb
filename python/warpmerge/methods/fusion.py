"""Fusion: a model's most important changes are taken whole, the others not at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from ..formula import Expr, Formula, Given, base, bennett_near, delta, exp, expm1_near, given, log, maximum, row, where
from ..ops import Apply, Copy, Rows, Select
from .base import Base, Steps, TensorInfo
from .registry import method
from .rows import each

SMOOTHING = 1e-8  # added to every probability (mergekit)
LARGE = 64.0  # exponentials of weights up to this, and the inverse of their sums, are normal float32 numbers
NEAR = 0.35  # differences of exponentials of numbers this close come from a series
ROUNDING = 2.0**-19  # a logarithm that is this share of what it is a difference of is rounding


class _Softmax(NamedTuple):
    """Of the rows of base and model: a - log(sum exp a) is what x_0 is as a probability, a + b is x_1 - max x_1.

    a, b: x_0 and the delta, with the rows' largest elements, given(0) and given(1), taken off if they are large.
    """

    shifted: bool

    @property
    def a(self) -> Expr:
        return base() - row(Given(0)) if self.shifted else base()

    @property
    def b(self) -> Expr:
        return delta(0) - row(Given(1)) if self.shifted else delta(0)

    def exponentials(self, wide: bool) -> tuple[Expr, Expr, Expr]:
        """exp(a), exp(a + b), and the second minus the first."""
        a, b = self.a, self.b
        old, new = exp(a), exp(a + b)
        return old, new, where(abs(b) < NEAR, old * expm1_near(b), new - old)

    def logarithm(self) -> Expr:
        """ln(p / q): the delta up to a constant of the row, given(2), 0 where that constant is all there is."""
        ratio = self.b - row(Given(2))
        return where(abs(ratio) <= abs(delta(0)) * ROUNDING, 0, ratio)

    def divergence(self, wide: bool) -> Expr:
        """p' ln(p' / q') - p' + q' with p' = p + 1e-8: at least 0, and its sum is that of p' ln(p' / q').

        given(3), given(4): the inverse sums of exp(a) and exp(a + b).
        """
        a, b, v = self.a, self.b, self.logarithm()
        p, q = exp(a + b) * row(Given(4)), exp(a) * row(Given(3))
        difference = where(abs(v) < NEAR, q * expm1_near(v), p - q)
        p1, q1 = p + SMOOTHING, q + SMOOTHING
        u = difference / q1
        return where(abs(u) < 0.3, q1 * bennett_near(u), p1 * log(u + 1) - difference)


def constants(sums: Any) -> Any:
    """Of each row the logarithm of sum exp(a + b) / sum exp a, from the sums of `exponentials`."""
    import numpy as np

    old, new, difference = sums
    near = np.abs(difference) < 0.5 * old
    return np.where(near, each(math.log1p, np.where(near, difference / old, 0.0)), each(math.log, new / old))


@functools.lru_cache
def _sums(shifted: bool, wide: bool) -> Formula:
    """The exponentials, and whether there is an element too large for them if they are not shifted."""
    values = _Softmax(shifted).exponentials(wide)
    return Formula(values if shifted else (*values, maximum(abs(base()), abs(base() + delta(0))) > LARGE))


@functools.lru_cache
def _both() -> Formula:
    return Formula((base(), base() + delta(0)))


@functools.lru_cache
def _divergence(shifted: bool, wide: bool) -> Formula:
    return Formula((_Softmax(shifted).divergence(wide),))


@functools.lru_cache
def _importances() -> Formula:
    """As many as there are quartiles."""
    return Formula((abs(delta(0)) * row(Given(0)),) * 3)


@functools.lru_cache
def _chosen() -> Formula:
    return Formula((where(abs(delta(0)) * row(Given(0)) < given(1), 0, delta(0)),))


def _divergences(tensor: TensorInfo) -> Generator[Rows, Any, Any]:
    """Of each row. Reads the tensor twice, or four times if it has elements whose exponentials must be shifted."""
    wide, columns = tensor.wide, tensor.columns
    shifts: tuple[Any, ...] = (None, None)
    *sums, large = yield Rows(_sums(False, wide).using(columns=columns))
    if shifted := bool(large.any()):
        largest_0, largest_1 = yield Rows(_both().using(columns=columns), largest=True)
        shifts = largest_0, largest_1 - largest_0
        sums = yield Rows(_sums(True, wide).using(*shifts, columns=columns))
    numbers = (*shifts, constants(sums), 1 / sums[0], 1 / sums[1])
    (kl,) = yield Rows(_divergence(shifted, wide).using(*numbers, columns=columns))
    return kl


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
    kl = yield from _divergences(tensor)
    kl = np.ldexp(kl, -np.frexp(kl.max())[1])  # importances are compared with each other only
    importances = _importances().using(kl, columns=tensor.columns)
    selected = yield Select(quartiles(tensor.count), keep_all_ties=True, of=importances)
    least = threshold(*(s.magnitude(tensor.wide) for s in selected))
    return Apply(_chosen().using(kl, least, columns=tensor.columns), relative=True)
