"""The library: expressions with a name, each defined once.

Methods and backends refer to a weighted sum, to elect-and-sum or to masked deltas by name. This module says what the
name means, as an expression. A backend may have a kernel for it, an accelerator; tests/expr/test_accelerators.py
compares each accelerator with its expression, bit for bit. A backend without one carries out the expression. It takes a
few more operations per element, and needs no code.
"""

from __future__ import annotations

from collections.abc import Sequence

from .expression import DELTA, Expr, add_up, delta, equal, masked, value, where
from .masks import Mask


def deltas(models: int) -> list[Expr]:
    """The deltas of models 0 to `models` - 1."""
    return [delta(k) for k in range(models)]


def weighted_sum(x: Sequence[Expr], coefficients: Sequence[float]) -> list[Expr]:
    """Sums sum_k c_k x_k: one for each group of K = len(x) coefficients."""
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
    """The merged delta lambda * (sum of weight_k d_k) / (sum of divisor_k), both sums over the models that agree.

    The vote of model k is vote_k d_k. The elected sign is that of the sum of votes, plus if the sum is 0. A model
    agrees if its vote is not 0 and has the elected sign. A sum of divisors of 0 counts as 1. If the sum of votes is
    NaN, so is the result. Without an election all models agree, and there is no division.

    Args:
        kept: K masked deltas.
        weights: K numbers.
        votes: K numbers; for an election only.
        divisor: K numbers; empty or all 0: no division.
        lambda_: a factor.
        elect: whether there is an election.
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
    """The votes. If they equal the deltas or the terms, these are shared, so that they are computed once."""
    if all(v == 1 for v in votes):
        return list(kept)
    if tuple(votes) == tuple(weights):
        return list(terms)
    return [d * float(v) for d, v in zip(kept, votes, strict=True)]


def all_masked(d: Sequence[Expr], masks: Sequence[Mask]) -> list[Expr]:
    """Each delta, masked by its mask."""
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
    """The values, with NaN where `of` is NaN."""
    is_number = equal(of, of)
    return [where(is_number, v, of) for v in values]
