"""Sums, extremes and counts of each delta in one read: all of them, or only the two sums that DARE rescales with."""

from __future__ import annotations

from warpmerge.requests import KEEP_ALL, Moments, RandomMask

from .kernels import Case, cases, measure, reference, some_cases


@cases(what="all")
def test_all(benchmark, case: Case) -> None:
    measure(benchmark, "moments", case, lambda count: Moments((KEEP_ALL,) * case.models))


@some_cases(Case(what="only_l1"), reference(what="only_l1"))
def test_only_l1(benchmark, case: Case) -> None:
    keep = tuple(RandomMask(key=0x9E3779B97F4A7C15 + k, cut=32768) for k in range(case.models))
    measure(benchmark, "moments", case, lambda count: Moments(keep, only_l1=True))
