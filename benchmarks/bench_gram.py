"""Norms and pairwise distances in one read: of deltas, and of two models as slerp asks for them."""

from __future__ import annotations

from warpmerge.requests import Gram

from .kernels import Case, cases, measure, reference, some_cases


@cases(what="deltas")
def test_deltas(benchmark, case: Case) -> None:
    measure(benchmark, "gram", case, lambda count: Gram(on_deltas=True))


@some_cases(Case(what="slerp", models=2), reference(what="slerp", models=2))
def test_slerp(benchmark, case: Case) -> None:
    measure(benchmark, "gram", case, lambda count: Gram(on_deltas=False))
