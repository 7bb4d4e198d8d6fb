"""What a `Reduce` comes down to: the five measurements that kernels carry out, and how their numbers are read.

    sum, count over a tensor                         TensorSums
    sum of |delta| and |mask(delta)| over a tensor   KeptSums, where a backend has it
    everything over rows                             RowFolds
    max, min, sum in float64 over a tensor           RowFolds of one row that is the whole tensor
    everything over columns                          ColumnFolds
    histogram                                        Bins

A count is the sum of an indicator, which is exact. A minimum is minus the maximum of minus the value.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MergeError
from ..expr.expression import Expr, Op, delta, equal, where
from ..expr.formula import Formula
from ..expr.patterns import KeptMagnitudes
from ..requests import Mask, Reduce
from ..tasks import TensorTask


class Term(enum.IntEnum):
    """What is folded over rows and columns; the numbers are those of csrc/ops/reduce.h."""

    PRODUCT = 0
    VALUE = 1
    LARGEST = 2


@dataclass(frozen=True, slots=True)
class TensorSums:
    """Per value its sum over the tensor in the compute type -> (values,) floats."""

    of: Formula | None
    on_deltas: bool


@dataclass(frozen=True, slots=True)
class KeptSums:
    """Per model the sums of |delta| and of |what its mask leaves of it| -> (2 K,) floats."""

    keep: tuple[Mask, ...]
    on_deltas: bool


@dataclass(frozen=True, slots=True)
class RowFolds:
    """Folds of rows of `columns` elements -> (terms, rows) float64. `pairs`: values that are multiplied, if any."""

    of: Formula
    columns: int
    term: Term
    pairs: tuple[tuple[int, int], ...]
    on_deltas: bool


@dataclass(frozen=True, slots=True)
class ColumnFolds:
    """Folds of columns of rows of `columns` elements -> (terms, columns) float64. `pairs` as in RowFolds."""

    of: Formula
    columns: int
    term: Term
    pairs: tuple[tuple[int, int], ...]
    on_deltas: bool


@dataclass(frozen=True, slots=True)
class Bins:
    """Per value a histogram of its magnitude keys -> K `HistogramResult`s."""

    of: Formula | None
    intervals: tuple[tuple[int, int], ...]
    on_deltas: bool


Primitive = TensorSums | KeptSums | RowFolds | ColumnFolds | Bins


def primitive(task: TensorTask, request: Reduce, accelerates: Callable[[KeptMagnitudes], bool]) -> Primitive:
    """What to measure for `request`. `accelerates`: whether the backend has a kernel for a pattern.

    Raises MergeError for rows whose length does not fit the tensor.
    """
    of = request.terms
    if (
        isinstance(of, KeptMagnitudes)
        and len(of.keep) == len(task.group.inputs)
        and _in_compute_type(request)
        and accelerates(of)
    ):
        return KeptSums(of.keep, request.on_deltas)
    if request.kind == "histogram":
        return Bins(of, request.intervals, request.on_deltas)
    of = _terms(request, of, len(task.group.inputs))
    if request.over == "tensor" and (request.kind == "count" or _in_compute_type(request)):
        return TensorSums(of, request.on_deltas)
    term = Term.PRODUCT if request.pairs else Term.LARGEST if request.kind in ("max", "min") else Term.VALUE
    formula = of or _deltas(len(task.group.inputs))
    if request.over == "tensor":
        return RowFolds(formula, max(1, task.info.count), term, request.pairs, request.on_deltas)
    folds = RowFolds if request.over == "row" else ColumnFolds
    return folds(formula, max(1, columns_of(task, formula)), term, request.pairs, request.on_deltas)


def columns_of(task: TensorTask, formula: Formula | None) -> int:
    """Elements of a row: of those that the formula is about, else along the tensor's last dimension."""
    count, columns = task.info.count, (formula.columns if formula is not None else 0) or task.info.columns
    if count and (columns < 1 or count % columns):
        raise MergeError(f"{task.info}: a formula has rows of {columns} elements, but the tensor has {count} elements.")
    return columns


def result(task: TensorTask, request: Reduce, found: Any) -> Any:
    """The request's result from that of its primitive."""
    if request.kind == "histogram":
        return found
    if request.over == "tensor":
        numbers = _numbers(found)
        if request.kind == "count":
            return tuple(map(int, numbers))
        if request.per_element:
            numbers = [n / max(1, task.info.count) for n in numbers]
        sign = -1.0 if request.kind == "min" else 1.0
        return tuple(sign * n + 0.0 if n == n else math.nan for n in numbers)
    if request.over == "column" and not task.info.count:
        import numpy as np

        return np.zeros((len(found), columns_of(task, request.terms)))
    return 0.0 - found if request.kind == "min" else found


def _numbers(found: Any) -> Sequence[float]:
    """Those of one row, or of none, for each term."""
    if isinstance(found, list):
        return found
    return [float(row[0]) if len(row) else 0.0 for row in found]


def _in_compute_type(request: Reduce) -> bool:
    return request.kind == "sum" and request.accumulator == "compute"


def _deltas(models: int) -> Formula:
    return Formula(tuple(delta(k) for k in range(models)))


def _terms(request: Reduce, of: Formula | None, models: int) -> Formula | None:
    """The formula whose values are added up or compared."""
    change = {"count": _indicator, "min": lambda value: -value}.get(request.kind)
    if change is None:
        return of
    formula = of or _deltas(models)
    if request.kind == "count" and all(value.op in (Op.LT, Op.LE, Op.EQ) for value in formula.values):
        return formula
    return Formula(tuple(map(change, formula.values)), formula.columns, formula.first)


def _indicator(value: Expr) -> Expr:
    """1 where the value is finite and not 0, else 0."""
    return where(equal(value - value, 0), where(value, 1, 0), 0)
