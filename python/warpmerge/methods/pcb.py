"""Parameter competition: each element is shared out among the models by how much it matters to each, and to all.

An element counts for a model by two things: how large its change is among the model's own changes, and how far it
agrees with the sum of all models' changes. The score of both decides how the models share the element. Only the
elements with the highest scores compete at all.

That takes four order statistics of each model: two bounds of its magnitudes, the score at the cut and the largest
score. Each is selected exactly, in one read for the bounds and one for the scores, and a third read merges. The score
is an expression with an exponential and a tangent, evaluated anew in each read: that costs less than to store it.
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

TAIL = 1e-4  # share of the magnitudes at each end that count as the last one inside
MOST = 36  # models: the scores of more would be a longer formula than there may be, in float64
LEAST = 1e-12  # sums of scores below this count as it
SERIES = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835)  # of tanh(x) / x in x^2


def tails(count: int) -> tuple[int, int]:
    """Ranks of the least and the largest magnitude that count, the largest of all being 1."""
    return count - int(TAIL * count), count - int((1 - TAIL) * count - 1)


def cut(ratio: float, count: int) -> int:
    """Rank of the score above which elements compete: of the sorted, the one at int((1 - ratio) n)."""
    return max(1, count - int((1 - ratio) * count))


def bounded_tanh(x: Expr, terms: int) -> Expr:
    """So many terms of its series in x; 0: the function of any x."""
    if terms == 0:
        return tanh(x)
    square, total = x * x, literal(SERIES[terms - 1])
    for c in reversed(SERIES[: terms - 1]):
        total = total * square + literal(c)
    return x * total if terms > 1 else x


def terms_of(bound: float, fp64: bool) -> int:
    """How many terms are as good as the function for arguments up to `bound`; 0 if it takes more than there are."""
    if bound > 1:
        return 0
    ulp = 2.0 ** (-53 if fp64 else -24)
    enough = [n for n in range(1, len(SERIES)) if abs(SERIES[n]) * bound ** (2 * n) < ulp / 4]
    return enough[0] if enough else 0


class Competition:
    """What the K models make of an element.

    bounds: of each model the least and the largest magnitude that count. terms: see `bounded_tanh`.
    """

    def __init__(self, bounds: Sequence[tuple[float, float]], terms: int) -> None:
        self.deltas, self.terms = deltas(len(bounds)), terms
        self.together = add_up(self.deltas)
        self.from_zero = all(low == 0 for low, _ in bounds)
        factor = math.sqrt(len(bounds))
        self.ends = [(value(low), value(high), value(-high)) for low, high in bounds]
        # Times it, a magnitude above the least one is its share of the range times the root of K.
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
        """How the model fares: exp(K share^2) tanh(d sum d), share: where its magnitude lies between its bounds.

        0 if its magnitudes are all the same.
        """
        root = self.roots[k]
        if root is None:
            return wrap(0)
        low, high, _ = self.ends[k]
        above = self.change(k) if self.from_zero else minimum(maximum(abs(self.deltas[k]), low), high) - low
        share = scaled(above, root)  # of either sign
        return exp(share * share) * bounded_tanh(self.deltas[k] * self.together, self.terms)

    def signed(self, sign: int) -> list[Expr]:
        """What is above zero of each score, or what is below if the sign is -1."""
        return [maximum(q if sign > 0 else -q, 0) for q in self.scores]

    def merged(self, ends: Sequence[tuple[float, float]], factor: float) -> Expr:
        """The merged delta. ends: of each model the score at the cut and the largest one."""
        values, shares = [], []
        for k, (least, most) in enumerate(ends):
            if most > least:
                start = value(least)
                shares.append(scaled(maximum(self.scores[k], start) - start, value(root_of(most - least))))
                values.append(self.change(k) * shares[-1])
        if not shares:  # nothing competes, and what is not a number still shows
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
    reads="3 by default; 4 where fewer elements than the share `ratio` agree with the sum, as with one above 0.5",
    formula="""a_k = |d_k| kept between its quantiles 0.0001 and 0.9999,  P_k = (a_k - min a_k) / (max a_k - min a_k)
Q_k = exp(K P_k^2) tanh(d_k sum d_j),  q_k = the quantile 1 - ratio of Q_k
s_k = (max(Q_k, q_k) - q_k) / (max Q_k - q_k),  0 where a_k or Q_k is the same everywhere
y = x_0 + lambda sum sign(d_k) a_k s_k / max(sum s_k, 1e-12)""",
    paper="Du et al. 2024, Parameter competition balancing for model merging, arXiv 2410.02396",
    notes=[
        "Quantiles are elements, those at int(n / 10000), int(0.9999 n - 1) and int((1 - ratio) n) of the sorted.",
        "Nothing competes in tensors of up to 1 / ratio elements, 10 by default, nor in those of one or two: they stay "
        "as they are in the base.",
    ],
    differences={
        "mergekit": "mergekit does not implement this method.",
        "the paper": [
            "It measures the whole model at once, which is scope: model.",
            "It tunes ratio, from 0.05 to 0.1, and lambda, about 1.2.",
        ],
    },
)
def pcb(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean of the deltas, weighted by how large each is among its own and how much it agrees with the others."""
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
    if 0.0 in ends:  # fewer scores than that are above zero: it is one from the bottom of those below
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
