"""Rules that keep by rank, for kernels that do not know them: requests with such rules as requests of formulas."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ...expr.elementary import nearest_whole
from ...expr.expression import Expr, Formula, Given, delta, draw, given, kept, maximum, minimum, rank, where
from ...expr.library import Form, merged
from ...requests import KEEP_ALL, ElectAndSum, Map, Mask, Moments, MomentsResult, RankMask


def spelled(request: Any, fp64: bool) -> Any:
    """The request, or one of formulas whose answer `answered` takes back. `fp64`: in float64."""
    keep = request.keep if isinstance(request, (Moments, ElectAndSum)) else ()
    ranked = tuple(isinstance(rule, RankMask) for rule in keep)
    if not any(ranked):
        return request
    columns = next(rule.columns for rule in keep if isinstance(rule, RankMask))
    if isinstance(request, Moments):
        of = _measured(ranked, fp64).using(*_numbers(keep), columns=columns)
        rules = [(KEEP_ALL, KEEP_ALL) if by_rank else (rule,) for by_rank, rule in zip(ranked, keep, strict=True)]
        return Moments(sum(rules, ()), request.only_l1, request.on_deltas, of)
    form, numbers = Form.of(request), _numbers(keep)
    formula = _merged(ranked, form, fp64).using(*numbers, *form.numbers(request), columns=columns)
    return Map(formula, request.on_deltas)


def answered(request: Any, answer: Any) -> Any:
    """The answer to a request from that to what it was spelled as."""
    if not isinstance(request, Moments) or not any(isinstance(rule, RankMask) for rule in request.keep):
        return answer
    found, results = iter(answer), []
    for rule in request.keep:
        whole = next(found)
        results.append(_of_kept(whole, next(found)) if isinstance(rule, RankMask) else whole)
    return results


def _of_kept(whole: MomentsResult, left: MomentsResult) -> MomentsResult:
    return MomentsResult(whole.sum_abs, whole.sum_sq, left.sum_abs, whole.min, whole.max, whole.nonzero, left.nonzero)


def _numbers(keep: Sequence[Mask]) -> list[Any]:
    """For the places of `_left`."""
    rows = [(r.low, r.step, r.key) if isinstance(r, RankMask) else (r, r, r) for r in keep]
    return [number for row in rows for number in row]


def _left(k: int, by_rank: bool, fp64: bool) -> Expr:
    """What the rule leaves of a delta."""
    if not by_rank:
        return kept(delta(k), Given(3 * k))
    cut = nearest_whole(given(3 * k) + rank(k) * given(3 * k + 1), fp64)
    return where(draw(Given(3 * k + 2)) < minimum(maximum(cut, 1), 65535), delta(k), 0)


@functools.lru_cache
def _measured(ranked: tuple[bool, ...], fp64: bool) -> Formula:
    """Of each model its delta, and what is left of it where its rule is by rank."""
    values = [(delta(k), _left(k, True, fp64)) if by_rank else (delta(k),) for k, by_rank in enumerate(ranked)]
    return Formula(sum(values, ()))


@functools.lru_cache
def _merged(ranked: tuple[bool, ...], form: Form, fp64: bool) -> Formula:
    left = [_left(k, by_rank, fp64) for k, by_rank in enumerate(ranked)]
    return Formula((merged(form.places(3 * len(ranked)), left),))
