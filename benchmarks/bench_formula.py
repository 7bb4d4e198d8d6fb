"""Formulas: applied, measured, by rows, with ranks. Their cost is that of their instructions, beyond reading."""

from __future__ import annotations

from warpmerge import formula as f
from warpmerge.formula import Expr, Formula
from warpmerge.ops import KEEP_ALL, Apply, Histogram, Moments, Rows, Select

from .kernels import Case, cases, measure, reference, some_cases


@cases(what="12 instructions")
def test_short(benchmark, case: Case) -> None:
    """A median of three, weighted and clipped."""
    measure(benchmark, "formula", case, lambda count: Apply(Formula((median(),)), relative=True))


@cases(what="52 instructions")
def test_long(benchmark, case: Case) -> None:
    total = median()
    for i in range(10):
        total = total * 0.9 + f.maximum(f.delta(i % 3), total * (0.1 + i))
    measure(benchmark, "formula", case, lambda count: Apply(Formula((total,)), relative=True))


@some_cases(Case(what="exp and tanh"), Case("fp32", what="exp and tanh"), reference(what="exp and tanh"))
def test_spelled_functions(benchmark, case: Case) -> None:
    value = f.tanh(f.delta(0) * 3) + f.exp(f.delta(1)) * f.delta(2)
    measure(benchmark, "formula", case, lambda count: Apply(Formula((value,)), relative=True))


@some_cases(Case(what="moments"), reference(what="moments"))
def test_moments(benchmark, case: Case) -> None:
    measure(benchmark, "formula", case, lambda count: Moments((KEEP_ALL,), of=Formula((median(),))))


@some_cases(Case(what="selection"), reference(what="selection"))
def test_selection(benchmark, case: Case) -> None:
    product = Formula((f.delta(0) * f.delta(1),))
    measure(benchmark, "formula", case, lambda count: Select((count // 5,), of=product))


@some_cases(Case(what="histogram"), reference(what="histogram"))
def test_histogram(benchmark, case: Case) -> None:
    octaves = (0x38000000, 0x3C000000)  # the eight below 2^-7
    measure(benchmark, "formula", case, lambda count: Histogram((octaves,) * case.models))


@some_cases(Case(what="rows"), reference(what="rows"))
def test_rows(benchmark, case: Case) -> None:
    squares = (f.delta(0) * f.delta(0),)
    measure(benchmark, "formula", case, lambda count: Rows(Formula(squares, columns(count))))


@some_cases(Case(what="ranks"), Case(what="ranks", threads=1), reference(what="ranks"))
def test_ranks(benchmark, case: Case) -> None:
    def upper_half(count: int) -> Apply:
        length = columns(count)
        return Apply(Formula((f.where(f.rank(0) < length // 2, 0.0, f.delta(0)),), length), relative=True)

    measure(benchmark, "formula", case, upper_half)


def median() -> Expr:
    a, b, c = (f.delta(k) for k in range(3))
    middle = f.maximum(f.minimum(a, b), f.minimum(f.maximum(a, b), c))
    mixed = middle * 0.7 + a * 0.1 + b * 0.2
    return f.where(abs(mixed) < 1.0, mixed, c)


def columns(count: int) -> int:
    """Length of a row: what divides both the operands and what is compared with the reference."""
    return 4096 if count % 4096 == 0 else 491
