"""Rules that keep by rank, for kernels that do not know them: requests with such rules as requests of formulas."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ..elementary import nearest_whole
from ..formula import Expr, Formula, Given, delta, draw, given, kept, maximum, minimum, rank, where
from ..methods.elect import Form, merged
from ..ops import KEEP_ALL, Apply, Consensus, Keep, KeepRanked, Moments, MomentsResult


def spelled(request: Any, wide: bool) -> Any:
    """The request, or one of formulas whose answer `answered` takes back. `wide`: in float64."""
    keep = request.keep if isinstance(request, (Moments, Consensus)) else ()
    ranked = tuple(isinstance(rule, KeepRanked) for rule in keep)
    if not any(ranked):
        return request
    columns = next(rule.columns for rule in keep if isinstance(rule, KeepRanked))
    if isinstance(request, Moments):
        of = _measured(ranked, wide).using(*_numbers(keep), columns=columns)
        rules = [(KEEP_ALL, KEEP_ALL) if by_rank else (rule,) for by_rank, rule in zip(ranked, keep, strict=True)]
        return Moments(sum(rules, ()), request.only_l1, request.relative, of)
    form, numbers = Form.of(request), _numbers(keep)
    formula = _merged(ranked, form, wide).using(*numbers, *form.numbers(request), columns=columns)
    return Apply(formula, request.relative)


def answered(request: Any, answer: Any) -> Any:
    """The answer to a request from that to what it was spelled as."""
    if not isinstance(request, Moments) or not any(isinstance(rule, KeepRanked) for rule in request.keep):
        return answer
    found, results = iter(answer), []
    for rule in request.keep:
        whole = next(found)
        results.append(_of_kept(whole, next(found)) if isinstance(rule, KeepRanked) else whole)
    return results


def _of_kept(whole: MomentsResult, left: MomentsResult) -> MomentsResult:
    return MomentsResult(whole.sum_abs, whole.sum_sq, left.sum_abs, whole.min, whole.max, whole.nonzero, left.nonzero)


def _numbers(keep: Sequence[Keep]) -> list[Any]:
    """For the places of `_left`."""
    rows = [(r.low, r.step, r.key) if isinstance(r, KeepRanked) else (r, r, r) for r in keep]
    return [number for row in rows for number in row]


def _left(k: int, by_rank: bool, wide: bool) -> Expr:
    """What the rule leaves of a delta."""
    if not by_rank:
        return kept(delta(k), Given(3 * k))
    cut = nearest_whole(given(3 * k) + rank(k) * given(3 * k + 1), wide)
    return where(draw(Given(3 * k + 2)) < minimum(maximum(cut, 1), 65535), delta(k), 0)


@functools.lru_cache
def _measured(ranked: tuple[bool, ...], wide: bool) -> Formula:
    """Of each model its delta, and what is left of it where its rule is by rank."""
    values = [(delta(k), _left(k, True, wide)) if by_rank else (delta(k),) for k, by_rank in enumerate(ranked)]
    return Formula(sum(values, ()))


@functools.lru_cache
def _merged(ranked: tuple[bool, ...], form: Form, wide: bool) -> Formula:
    left = [_left(k, by_rank, wide) for k, by_rank in enumerate(ranked)]
    return Formula((merged(form.places(3 * len(ranked)), left),))
