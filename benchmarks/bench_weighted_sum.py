"""The weighted sum of deltas: one read of base and models, one write."""

from __future__ import annotations

from warpmerge.requests import WeightedSum

from .kernels import Case, cases, measure
from .operands import WEIGHTS


@cases(Case(models=2), Case(models=8))
def test_weighted_sum(benchmark, case: Case) -> None:
    measure(benchmark, "weighted_sum", case, lambda count: WeightedSum(WEIGHTS[: case.models], on_deltas=True))
