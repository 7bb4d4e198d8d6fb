"""Masks by rank, for kernels that do not know them: requests with such masks as requests of formulas."""

from __future__ import annotations

from typing import Any

from ...expr.expression import delta, masked
from ...expr.formula import Formula
from ...requests import KEEP_ALL, ElectAndSum, Moments, MomentsResult, RankMask


def spelled(request: Any, models: int) -> Any:
    """The request, or one of formulas whose answer `answered` takes back. `models`: inputs of the tensor."""
    keep = request.keep if isinstance(request, (Moments, ElectAndSum)) else ()
    if not any(isinstance(rule, RankMask) for rule in keep):
        return request
    if isinstance(request, ElectAndSum):
        return request.as_map(models)
    values: list[Any] = []  # of each model its delta, and what is left of it where its mask is by rank
    rules: list[Any] = []
    for k, rule in enumerate(keep):
        by_rank = isinstance(rule, RankMask)
        values += [delta(k), masked(delta(k), rule)] if by_rank else [delta(k)]
        rules += [KEEP_ALL, KEEP_ALL] if by_rank else [rule]
    return Moments(tuple(rules), request.only_l1, request.on_deltas, Formula(values))


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
