"""Parts of formulas that several families share: elections, and what comparisons would hide."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ..requests import ElectAndSum
from .expression import Expr, add_up, equal, given, where


def merged(request: ElectAndSum, d: Sequence[Expr]) -> Expr:
    """The delta that `request` makes of its kept deltas, made of any expressions.

    Of an election without ballots they are the deltas.
    """
    terms = [x * v for x, v in zip(d, request.value, strict=True)]
    if not request.elect:
        return add_up(terms) * request.lambda_
    votes_of = [x * b for x, b in zip(d, request.vote, strict=True)] if request.vote else list(d)
    votes = add_up(votes_of)
    sign = where(votes < 0, -1, 1)
    agrees = [b * sign > 0 for b in votes_of]
    elected = add_up([where(a, t, 0) for a, t in zip(agrees, terms, strict=True)])
    if any(isinstance(share, Expr) or share for share in request.divisor):
        divisor = add_up([a * share for a, share in zip(agrees, request.divisor, strict=True)])
        elected = elected / where(equal(divisor, 0), 1, divisor)
    return where(equal(votes, votes), elected * request.lambda_, votes)


class Form(NamedTuple):
    """What decides the formula of a elect_and_sum; the rest of it are numbers, which vary from tensor to tensor."""

    models: int
    elect: bool
    votes: str  # whose: "values", "deltas" or "ballots"
    divides: bool

    @classmethod
    def of(cls, request: ElectAndSum) -> Form:
        plain = all(b == 1 for b in request.vote)
        votes = "deltas" if plain else "values" if request.vote == request.value else "ballots"
        return cls(len(request.value), request.elect, votes, request.elect and any(request.divisor))

    def places(self, first: int = 0) -> ElectAndSum:
        """With given(first), given(first + 1), ... where `numbers` go."""
        places = map(given, itertools.count(first))
        value, lambda_ = tuple(itertools.islice(places, self.models)), next(places)
        own = tuple(itertools.islice(places, self.models * (self.votes == "ballots")))
        vote = value if self.votes == "values" else own
        divisor = tuple(itertools.islice(places, self.models * self.divides))
        return ElectAndSum(value, (), vote, divisor, lambda_, self.elect)

    def numbers(self, request: ElectAndSum) -> tuple[float, ...]:
        vote = request.vote if self.votes == "ballots" else ()
        return (*request.value, request.lambda_, *vote, *(request.divisor if self.divides else ()))


def not_hidden(value: Expr, inputs: Sequence[Expr]) -> Expr:
    """`value`, but NaN where an input is, or where infinities cancel: comparisons would pass over it."""
    total = add_up(inputs)
    return where(equal(total, total), value, total)
