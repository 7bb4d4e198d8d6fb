"""What several methods and backends mean by the same words, each defined once, as expressions.

A backend may have a faster way for one of them, an accelerator. tests/expr/test_accelerators.py compares each with its
expression bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from .expression import DELTA, Expr, add_up, delta, equal, masked, value, where
from .masks import Mask


def deltas(models: int) -> list[Expr]:
    """Those of models 0 to `models` - 1."""
    return [delta(k) for k in range(models)]


def weighted_sum(x: Sequence[Expr], coefficients: Sequence[float]) -> list[Expr]:
    """sum_k c_k x_k, for each K of the coefficients."""
    models = len(x)
    rows = [coefficients[first : first + models] for first in range(0, len(coefficients), models)]
    return [add_up([d * float(c) for d, c in zip(x, row, strict=True)]) for row in rows]


def elect_and_sum(
    kept: Sequence[Expr],
    weights: Sequence[float],
    votes: Sequence[float] = (),
    divisor: Sequence[float] = (),
    lambda_: float = 1.0,
    *,
    elect: bool,
) -> Expr:
    """lambda * (sum of agreeing weight_k d_k) / (sum of agreeing divisor_k), for deltas d_k as masks left them.

    Model k votes with vote_k d_k. It agrees where its vote has the sign of the sum of all votes, plus where that is 0.
    A divisor of 0 counts as 1. Where the votes are NaN, so is the result. Without an election all agree.
    """
    weight = [value(w) for w in weights]
    terms = [d * w for d, w in zip(kept, weight, strict=True)]
    factor = float(lambda_)
    if not elect:
        return add_up(terms) * factor
    vote = _votes(kept, terms, weights, votes)
    total = add_up(vote)
    sign = where(total < 0, -1, 1)
    agrees = [v * sign > 0 for v in vote]
    elected = add_up([where(a, t, 0) for a, t in zip(agrees, terms, strict=True)])
    if any(divisor):
        by = add_up([a * float(share) for a, share in zip(agrees, divisor, strict=True)])
        elected = elected / where(equal(by, 0), 1, by)
    return where(equal(total, total), elected * factor, total)


def _votes(kept: Sequence[Expr], terms: Sequence[Expr], weights: Sequence[float], votes: Sequence[float]) -> list[Expr]:
    """What each model votes with: its delta, its term, or a multiple of its own."""
    if all(v == 1 for v in votes):
        return list(kept)
    if tuple(votes) == tuple(weights):
        return list(terms)
    return [d * float(v) for d, v in zip(kept, votes, strict=True)]


def all_masked(d: Sequence[Expr], masks: Sequence[Mask]) -> list[Expr]:
    """What each mask leaves of its delta."""
    return [masked(x, mask) for x, mask in zip(d, masks, strict=True)]


def sum_of_inputs(values: Sequence[Expr]) -> Expr | None:
    """The sum of the deltas that the expressions read, in the order of the models; None if they read none."""
    read: dict[int, Expr] = {}
    pending, seen = list(values), set(values)
    while pending:
        expr = pending.pop()
        if expr.op == DELTA:
            read[expr.payload] = expr
        for operand in expr.args:
            if operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return add_up([read[k] for k in sorted(read)]) if read else None


def with_nan(values: Sequence[Expr], of: Expr) -> list[Expr]:
    """The values, but NaN where `of` is."""
    is_number = equal(of, of)
    return [where(is_number, v, of) for v in values]
