"""Formulas: applied, measured, by rows, with ranks. Their cost is that of their instructions, beyond reading."""

from __future__ import annotations

from warpmerge.expr import expression as f
from warpmerge.expr.formula import Formula
from warpmerge.requests import KthLargest, Map, Reduce

from .kernels import Case, cases, measure, reference, some_cases
from .programs import chain, median


@cases(what="12 instructions")
def test_short(benchmark, case: Case) -> None:
    measure(benchmark, "formula", case, lambda count: Map(Formula((median(),)), on_deltas=True))


@cases(what="52 instructions")
def test_long(benchmark, case: Case) -> None:
    measure(benchmark, "formula", case, lambda count: Map(Formula((chain(),)), on_deltas=True))


@some_cases(Case(what="exp and tanh"), Case("fp32", what="exp and tanh"), reference(what="exp and tanh"))
def test_spelled_functions(benchmark, case: Case) -> None:
    value = f.tanh(f.delta(0) * 3) + f.exp(f.delta(1)) * f.delta(2)
    measure(benchmark, "formula", case, lambda count: Map(Formula((value,)), on_deltas=True))


@some_cases(Case(what="sum"), reference(what="sum"))
def test_sum(benchmark, case: Case) -> None:
    measure(benchmark, "formula", case, lambda count: Reduce("sum", (median(),)))


@some_cases(Case(what="selection"), reference(what="selection"))
def test_selection(benchmark, case: Case) -> None:
    product = Formula((f.delta(0) * f.delta(1),))
    measure(benchmark, "formula", case, lambda count: KthLargest((count // 5,), of=product))


@some_cases(Case(what="histogram"), reference(what="histogram"))
def test_histogram(benchmark, case: Case) -> None:
    octaves = (0x38000000, 0x3C000000)  # the eight below 2^-7
    measure(benchmark, "formula", case, lambda count: Reduce("histogram", intervals=(octaves,) * case.models))


@some_cases(Case(what="rows"), reference(what="rows"))
def test_rows(benchmark, case: Case) -> None:
    squares = (f.delta(0) * f.delta(0),)
    measure(benchmark, "formula", case, lambda count: Reduce("sum", Formula(squares, columns(count)), "row", "float64"))


@some_cases(Case(what="ranks"), Case(what="ranks", threads=1), reference(what="ranks"))
def test_ranks(benchmark, case: Case) -> None:
    def upper_half(count: int) -> Map:
        length = columns(count)
        return Map(Formula((f.where(f.rank(0) < length // 2, 0.0, f.delta(0)),), length), on_deltas=True)

    measure(benchmark, "formula", case, upper_half)


def columns(count: int) -> int:
    """Length of a row: what divides both the operands and what is compared with the reference."""
    return 4096 if count % 4096 == 0 else 491
