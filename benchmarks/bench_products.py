"""Sums of products per row and per column: of deltas with each other, and of the base with deltas, as in WIDEN."""

from __future__ import annotations

import itertools

from warpmerge.expr import expression as f
from warpmerge.expr.formula import Formula
from warpmerge.requests import Reduce

from .bench_formula import columns
from .kernels import Case, cases, measure, reference, some_cases


def _each_other(count: int, per_column: bool) -> Reduce:
    values = Formula(tuple(f.delta(k) for k in range(3)), columns(count))
    pairs = tuple(itertools.combinations_with_replacement(range(3), 2))
    return Reduce("sum", values, "column" if per_column else "row", "float64", pairs)


@cases(what="rows")
def test_rows(benchmark, case: Case) -> None:
    measure(benchmark, "products", case, lambda count: _each_other(count, False))


@cases(what="columns")
def test_columns(benchmark, case: Case) -> None:
    measure(benchmark, "products", case, lambda count: _each_other(count, True))


@some_cases(Case(what="base, columns"), reference(what="base, columns"))
def test_base(benchmark, case: Case) -> None:
    pairs = ((0, 0), *((0, k) for k in range(1, 4)), *((k, k) for k in range(1, 4)))
    values = (f.base(), *(f.delta(k) for k in range(3)))
    measure(
        benchmark,
        "products",
        case,
        lambda count: Reduce("sum", Formula(values, columns(count)), "column", "float64", pairs),
    )
