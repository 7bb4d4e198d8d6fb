"""Parts of formulas that several families share: elections, and what comparisons would hide."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ..formula import Expr, add_up, equal, given, where
from ..ops import Consensus


def merged(request: Consensus, d: Sequence[Expr]) -> Expr:
    """The delta that `request` makes of its kept deltas, made of any expressions: csrc/ops/consensus.h as a formula.

    Of an election without ballots they are the deltas.
    """
    terms = [x * v for x, v in zip(d, request.value, strict=True)]
    if not request.elect:
        return add_up(terms) * request.lambda_
    ballots = [x * b for x, b in zip(d, request.ballot, strict=True)] if request.ballot else list(d)
    votes = add_up(ballots)
    sign = where(votes < 0, -1, 1)
    agrees = [b * sign > 0 for b in ballots]
    elected = add_up([where(a, t, 0) for a, t in zip(agrees, terms, strict=True)])
    if any(isinstance(share, Expr) or share for share in request.divisor):
        divisor = add_up([a * share for a, share in zip(agrees, request.divisor, strict=True)])
        elected = elected / where(equal(divisor, 0), 1, divisor)
    return where(equal(votes, votes), elected * request.lambda_, votes)


class Form(NamedTuple):
    """What decides the formula of a consensus; the rest of it are numbers, which vary from tensor to tensor."""

    models: int
    elect: bool
    votes: str  # whose: "values", "deltas" or "ballots"
    divides: bool

    @classmethod
    def of(cls, request: Consensus) -> Form:
        plain = all(b == 1 for b in request.ballot)
        votes = "deltas" if plain else "values" if request.ballot == request.value else "ballots"
        return cls(len(request.value), request.elect, votes, request.elect and any(request.divisor))

    def places(self, first: int = 0) -> Consensus:
        """With given(first), given(first + 1), ... where `numbers` go."""
        places = map(given, itertools.count(first))
        value, lambda_ = tuple(itertools.islice(places, self.models)), next(places)
        own = tuple(itertools.islice(places, self.models * (self.votes == "ballots")))
        ballot = value if self.votes == "values" else own
        divisor = tuple(itertools.islice(places, self.models * self.divides))
        return Consensus(value, (), ballot, divisor, lambda_, self.elect)

    def numbers(self, request: Consensus) -> tuple[float, ...]:
        ballot = request.ballot if self.votes == "ballots" else ()
        return (*request.value, request.lambda_, *ballot, *(request.divisor if self.divides else ()))


def not_hidden(value: Expr, inputs: Sequence[Expr]) -> Expr:
    """`value`, but NaN where an input is, or where infinities cancel: comparisons would pass over it."""
    total = add_up(inputs)
    return where(equal(total, total), value, total)
