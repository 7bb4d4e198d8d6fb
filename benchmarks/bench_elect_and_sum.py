"""Sparsify, elect and sum: the combination of TIES (thresholds, election) and of DARE (random drops, no election)."""

from __future__ import annotations

from warpmerge.requests import ElectAndSum, KthLargest, RandomMask, TopKMask

from .kernels import COUNT, THREADS, Case, cases, make_task, measure, native, reference, some_cases
from .operands import WEIGHTS, carry_out


@cases(what="ties")
def test_ties(benchmark, case: Case) -> None:
    weights = WEIGHTS[: case.models]
    request = ElectAndSum(weights, half(case), vote=weights, divisor=weights, elect=True)
    measure(benchmark, "elect_and_sum", case, lambda count: request, reach=">= 75 %", aim=">= 90 %")


@some_cases(Case(what="dare"), Case(what="dare", models=8), reference(what="dare"))
def test_dare(benchmark, case: Case) -> None:
    keep = tuple(RandomMask(key=0x9E3779B97F4A7C15 + k, cut=32768) for k in range(case.models))
    measure(benchmark, "elect_and_sum", case, lambda count: ElectAndSum(WEIGHTS[: case.models], keep))


def half(case: Case) -> tuple[TopKMask, ...]:
    """The rule that keeps the larger half of each delta, for the whole operands."""
    request = KthLargest((COUNT // 2,) * case.models)
    found = carry_out(native(THREADS, ""), make_task(case, base=True, count=COUNT), request)
    return tuple(selection.keep() for selection in found.value)
