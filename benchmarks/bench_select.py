"""The exact median magnitude of each delta: one sweep over base and models after a sample has bracketed it."""

from __future__ import annotations

from warpmerge.requests import KthLargest

from .kernels import Case, cases, measure


@cases()
def test_select(benchmark, case: Case) -> None:
    def make(count: int) -> KthLargest:
        return KthLargest((count // 2,) * case.models)

    measure(benchmark, "select", case, make, reach="<= 0.7 ns", aim="<= 0.3 ns")
