"""Sums of each delta in one read, and the two sums of magnitudes that DARE rescales with."""

from __future__ import annotations

from warpmerge.expr.patterns import KeptMagnitudes
from warpmerge.requests import RandomMask, Reduce

from .kernels import Case, cases, measure, reference, some_cases


@cases(what="all")
def test_all(benchmark, case: Case) -> None:
    measure(benchmark, "sums", case, lambda count: Reduce("sum"))


@some_cases(Case(what="kept"), reference(what="kept"))
def test_kept(benchmark, case: Case) -> None:
    keep = tuple(RandomMask(key=0x9E3779B97F4A7C15 + k, cut=32768) for k in range(case.models))
    measure(benchmark, "sums", case, lambda count: Reduce("sum", KeptMagnitudes(keep)))
