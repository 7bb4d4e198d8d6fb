"""Parts of formulas that several families share: elections, and what comparisons would hide."""

from __future__ import annotations

from collections.abc import Sequence

from ..formula import Expr, add_up, equal, where
from ..ops import Consensus


def merged(request: Consensus, d: Sequence[Expr]) -> Expr:
    """The delta that `request` makes of its kept deltas, made of any expressions: csrc/ops/consensus.h as a formula."""
    terms = [x * v for x, v in zip(d, request.value, strict=True)]
    if not request.elect:
        return add_up(terms) * request.lambda_
    ballots = [x * b for x, b in zip(d, request.ballot, strict=True)]
    votes = add_up(ballots)
    minus = votes < 0
    agrees = [where(minus, b < 0, b > 0) for b in ballots]
    total = add_up([where(a, t, 0) for a, t in zip(agrees, terms, strict=True)])
    divisor = add_up([where(a, share, 0) for a, share in zip(agrees, request.divisor, strict=True)])
    elected = total / where(equal(divisor, 0), 1, divisor) * request.lambda_
    return where(equal(votes, votes), elected, votes)


def not_hidden(value: Expr, inputs: Sequence[Expr]) -> Expr:
    """`value`, but NaN where an input is, or where infinities cancel: comparisons would pass over it."""
    total = add_up(inputs)
    return where(equal(total, total), value, total)
