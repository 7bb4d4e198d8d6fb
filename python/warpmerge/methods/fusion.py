"""Fusion: a model's most important changes are taken whole, the others not at all."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

from ..expr.expression import (
    Expr,
    Formula,
    Given,
    base,
    delta,
    divergence_near,
    exp,
    expm1_near,
    given,
    log,
    row,
    where,
)
from ..requests import Copy, KthLargest, Map, Rows
from .base import Base, Steps, TensorInfo
from .registry import method
from .rows import each

SMOOTHING = 1e-8  # added to every probability (mergekit)
LARGE = 1e27  # exponentials of rows whose sum is below this, and its inverse, are normal float32 numbers
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

    def exponentials(self) -> tuple[Expr, Expr, Expr]:
        """exp(a), exp(a + b), and the second minus the first."""
        a, b = self.a, self.b
        old, new = exp(a), exp(a + b)
        return old, new, where(abs(b) < NEAR, old * expm1_near(b), new - old)

    def logarithm(self) -> Expr:
        """ln(p / q): the delta up to a constant of the row, given(2), 0 where that constant is all there is."""
        ratio = self.b - row(Given(2))
        return where(abs(ratio) <= abs(delta(0)) * ROUNDING, 0, ratio)

    def divergence(self) -> Expr:
        """p' ln(p' / q') - p' + q' with p' = p + 1e-8: at least 0, and its sum is that of p' ln(p' / q').

        given(3), given(4): the inverse sums of exp(a) and exp(a + b).
        """
        a, b, v = self.a, self.b, self.logarithm()
        q = exp(a) * row(Given(3))
        difference = where(abs(v) < NEAR, q * expm1_near(v), exp(a + b) * row(Given(4)) - q)
        q1 = q + SMOOTHING
        p1 = q1 + difference
        both = p1 + q1
        s = difference / both
        return where(abs(s) < 0.13, both * divergence_near(s), p1 * log(p1 / q1) - difference)


def constants(old: Any, difference: Any, new: Any = None) -> Any:
    """Of each row the logarithm of sum exp(a + b) / sum exp a, from the sums of `exponentials`."""
    import numpy as np

    near = _is_near(old, difference)
    logarithms = each(math.log1p, np.where(near, difference / old, 0.0))
    return logarithms if new is None else np.where(near, logarithms, each(math.log, new / old))


def _is_near(old: Any, difference: Any) -> Any:
    """Whether the sums of a row are so alike that the sum of exp(a + b) is theirs."""
    return abs(difference) < 0.5 * old


@functools.lru_cache
def _sums(shifted: bool) -> Formula:
    old, new, difference = _Softmax(shifted).exponentials()
    return Formula((old, difference, new) if shifted else (old, difference))


@functools.lru_cache
def _both() -> Formula:
    return Formula((base(), base() + delta(0)))


@functools.lru_cache
def _divergence(shifted: bool) -> Formula:
    return Formula((_Softmax(shifted).divergence(),))


@functools.lru_cache
def _importances() -> Formula:
    """As many as there are quartiles, with the signs of the deltas."""
    return Formula((delta(0) * row(Given(0)),) * 3)


@functools.lru_cache
def _chosen() -> Formula:
    return Formula((where(abs(delta(0)) * row(Given(0)) < given(1), 0, delta(0)),))


def _divergences(tensor: TensorInfo) -> Generator[Rows, Any, Any]:
    """Of each row. Reads the tensor twice, or four times if there is a row whose exponentials must be shifted."""
    columns = tensor.columns
    shifts: tuple[Any, ...] = (None, None)
    old, difference = sums = yield Rows(_sums(False).using(columns=columns))
    plain = (old < LARGE) & (old > 1 / LARGE) & _is_near(old, difference)
    if plain.all():
        new = old + difference
    else:
        largest_0, largest_1 = yield Rows(_both().using(columns=columns), largest=True)
        shifts = largest_0, largest_1 - largest_0
        old, _, new = sums = yield Rows(_sums(True).using(*shifts, columns=columns))
    formula = _divergence(not plain.all())
    (kl,) = yield Rows(formula.using(*shifts, constants(*sums), 1 / old, 1 / new, columns=columns))
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
        "Tensors with a row of elements beyond 60, or whose sum of exponentials changes by half, are read six times.",
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
    selected = yield KthLargest(quartiles(tensor.count), keep_all_ties=True, of=importances)
    least = threshold(*(s.magnitude(tensor.fp64) for s in selected))
    return Map(_chosen().using(kl, least, columns=tensor.columns), on_deltas=True)
