"""Sparsify, elect and sum: the combination of TIES (thresholds, election) and of DARE (random drops, no election)."""

from __future__ import annotations

from warpmerge.ops import Consensus, KeepAbove, KeepDrawn, Select

from .kernels import COUNT, THREADS, WEIGHTS, Case, carry_out, cases, make_task, measure, native, reference, some_cases


@cases(what="ties")
def test_ties(benchmark, case: Case) -> None:
    weights = WEIGHTS[: case.models]
    request = Consensus(weights, half(case), ballot=weights, divisor=weights, elect=True)
    measure(benchmark, "consensus", case, lambda count: request, reach=">= 75 %", aim=">= 90 %")


@some_cases(Case(what="dare"), Case(what="dare", models=8), reference(what="dare"))
def test_dare(benchmark, case: Case) -> None:
    keep = tuple(KeepDrawn(key=0x9E3779B97F4A7C15 + k, cut=32768) for k in range(case.models))
    measure(benchmark, "consensus", case, lambda count: Consensus(WEIGHTS[: case.models], keep))


def half(case: Case) -> tuple[KeepAbove, ...]:
    """The rule that keeps the larger half of each delta, for the whole operands."""
    request = Select((COUNT // 2,) * case.models)
    found = carry_out(native(THREADS, ""), make_task(case, base=True, count=COUNT), request)
    return tuple(selection.keep() for selection in found.value)
