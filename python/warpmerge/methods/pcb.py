"""Parameter competition: the models compete for each element with a score, and share it by their scores.

A model's score for an element grows with two things: how large its delta is among the model's own deltas, and how far
that delta agrees with the sum of all models' deltas. Only the elements of the highest scores compete at all.

That takes four order statistics of each model: two bounds of its magnitudes, the score at the cut and the largest
score. All are exact. One read finds the bounds, one the scores, and a third read merges. The score is an expression
with an exponential and a hyperbolic tangent. Each read evaluates it anew: that costs less than to store it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..expr.expression import Expr, add_up, equal, exp, literal, maximum, minimum, tanh, value, where, wrap
from ..expr.formula import Formula
from ..expr.library import deltas
from ..requests import Copy, KthLargest, Map
from .base import Base, Steps, TensorInfo
from .parameters import number, scope
from .registry import method

TAIL = 1e-4  # share of the magnitudes at each end that are clipped
MOST = 36  # models: for more, the expressions would exceed the longest program, in float64
LEAST = 1e-12  # a smaller sum of scores counts as this
SERIES = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835)  # of tanh(x) / x in x^2


def tails(count: int) -> tuple[int, int]:
    """Ranks of the least and the largest magnitude that count, the largest of all being 1."""
    return count - int(TAIL * count), count - int((1 - TAIL) * count - 1)


def cut(ratio: float, count: int) -> int:
    """Rank of the score above which elements compete: in ascending order the one at int((1 - ratio) n)."""
    return max(1, count - int((1 - ratio) * count))


def bounded_tanh(x: Expr, terms: int) -> Expr:
    """tanh(x) by the first `terms` terms of its series; 0: by the function, for any x."""
    if terms == 0:
        return tanh(x)
    square, total = x * x, literal(SERIES[terms - 1])
    for c in reversed(SERIES[: terms - 1]):
        total = total * square + literal(c)
    return x * total if terms > 1 else x


def terms_of(bound: float, fp64: bool) -> int:
    """The number of terms that are as good as the function for |x| up to `bound`; 0: SERIES has too few."""
    if bound > 1:
        return 0
    ulp = 2.0 ** (-53 if fp64 else -24)
    enough = [n for n in range(1, len(SERIES)) if abs(SERIES[n]) * bound ** (2 * n) < ulp / 4]
    return enough[0] if enough else 0


class Competition:
    """The scores of the K models for an element, and the merged delta.

    bounds: of each model the least and the largest magnitude that count. terms: see `bounded_tanh`.
    """

    def __init__(self, bounds: Sequence[tuple[float, float]], terms: int) -> None:
        self.deltas, self.terms = deltas(len(bounds)), terms
        self.together = add_up(self.deltas)
        self.from_zero = all(low == 0 for low, _ in bounds)
        factor = math.sqrt(len(bounds))
        self.ends = [(value(low), value(high), value(-high)) for low, high in bounds]
        # A magnitude less the lower bound, times this root twice, is sqrt(K) times its share of the range.
        self.roots = [value(root_of(high - low, factor)) if high > low else None for low, high in bounds]
        self.scores = [self._score(k) for k in range(len(bounds))]

    def change(self, k: int) -> Expr:
        """The delta with its magnitude kept between the bounds."""
        d = self.deltas[k]
        low, high, minus_high = self.ends[k]
        if self.from_zero:
            return minimum(maximum(d, minus_high), high)
        return ((d > 0) - (d < 0)) * minimum(maximum(abs(d), low), high)

    def _score(self, k: int) -> Expr:
        """exp(K share^2) tanh(d sum d). share: 0 for a magnitude at the lower bound, 1 at the upper one.

        The score is 0 if all magnitudes of the model are the same.
        """
        root = self.roots[k]
        if root is None:
            return wrap(0)
        low, high, _ = self.ends[k]
        above = self.change(k) if self.from_zero else minimum(maximum(abs(self.deltas[k]), low), high) - low
        share = scaled(above, root)  # of either sign
        return exp(share * share) * bounded_tanh(self.deltas[k] * self.together, self.terms)

    def signed(self, sign: int) -> list[Expr]:
        """max(score, 0) of each model, or max(-score, 0) if the sign is -1."""
        return [maximum(q if sign > 0 else -q, 0) for q in self.scores]

    def merged(self, ends: Sequence[tuple[float, float]], factor: float) -> Expr:
        """The merged delta. ends: of each model the score at the cut and the largest one."""
        values, shares = [], []
        for k, (least, most) in enumerate(ends):
            if most > least:
                start = value(least)
                shares.append(scaled(maximum(self.scores[k], start) - start, value(root_of(most - least))))
                values.append(self.change(k) * shares[-1])
        if not shares:  # nothing competes: 0, or NaN if there is one
            return where(equal(self.together, self.together), 0, self.together)
        return add_up(values) / maximum(add_up(shares), literal(LEAST)) * factor


def scaled(x: Expr, root: Expr) -> Expr:
    """x / span, with `root_of(span)`."""
    return x * root * root


def root_of(span: float, factor: float = 1.0) -> float:
    """The root of factor / span, which does not overflow as the quotient can; 0 for no span."""
    return math.sqrt(factor) / math.sqrt(span) if span > 0 else 0.0


@method(
    "pcb",
    base=Base.REFERENCE,
    models=(1, MOST),
    parameters=[
        number("ratio", low=0, high=1, default=0.1, help="share of each model's elements that compete"),
        number("lambda", default=1.0, help="factor of the merged delta"),
        scope("tensor", "model"),
    ],
    passes=lambda p: 3 + (p["ratio"] > 0.5),
    reads="3 by default; 4 if fewer elements than the share `ratio` have Q_k > 0, as with a ratio above 0.5",
    formula="""a_k = |d_k| clipped to its quantiles 0.0001 and 0.9999,  P_k = (a_k - min a_k) / (max a_k - min a_k)
Q_k = exp(K P_k^2) tanh(d_k sum d_j),  q_k = the quantile 1 - ratio of Q_k
s_k = (max(Q_k, q_k) - q_k) / (max Q_k - q_k),  0 if a_k or Q_k is constant
y = x_0 + lambda sum sign(d_k) a_k s_k / max(sum s_k, 1e-12)""",
    paper="Du et al. 2024, Parameter competition balancing for model merging, arXiv 2410.02396",
    notes=[
        "Quantiles are elements: in sorted order those at int(n / 10000), int(0.9999 n - 1) and int((1 - ratio) n).",
        "In tensors of one or two elements, and of up to 1 / ratio elements (10 by default), nothing competes. The "
        "output is the base.",
    ],
    differences={
        "mergekit": "mergekit does not implement this method.",
        "the paper": [
            "The paper measures the whole model at once: scope: model.",
            "The paper tunes ratio, from 0.05 to 0.1, and lambda, about 1.2.",
        ],
    },
)
def pcb(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean of the deltas. Large deltas that agree with the sum of all models weigh more."""
    models, count, fp64 = tensor.models, tensor.count, tensor.fp64
    if not count:
        return Copy()
    thrice = Formula([d for d in deltas(models) for _ in range(3)])
    found = yield KthLargest((*tails(count), 1) * models, keep_all_ties=True, of=thrice)
    sizes = [s.magnitude(fp64) for s in found]
    bounds = list(zip(sizes[::3], sizes[1::3], strict=True))
    terms = 0 if p["nonfinite"] == "propagate" else terms_of(max(sizes[2::3]) * sum(sizes[2::3]), fp64)
    competition = Competition(bounds, terms)
    at = cut(p["ratio"], count)
    ends = yield from _ends(competition, 1, (at, 1), fp64)
    if 0.0 in ends:  # too few scores are above zero, so the cut is among those below: count it from the smallest
        below = yield from _ends(competition, -1, (count - at + 1, count), fp64)
        ends = [high if high > 0 else -low for high, low in zip(ends, below, strict=True)]
    ranges = list(zip(ends[::2], ends[1::2], strict=True))
    return Map(Formula((competition.merged(ranges, p["lambda"]),)), on_deltas=True)


def _ends(
    competition: Competition, sign: int, ranks: tuple[int, int], fp64: bool
) -> Generator[KthLargest, Any, list[float]]:
    """Magnitudes of two ranks of the scores of each model that have the sign."""
    scores = competition.signed(sign)
    formula = Formula([score for score in scores for _ in range(2)])
    found = yield KthLargest(ranks * len(scores), keep_all_ties=True, of=formula)
    return [s.magnitude(fp64) for s in found]
