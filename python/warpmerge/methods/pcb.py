"""Parameter competition: each element is shared out among the models by how much it matters to each, and to all."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from ..formula import Expr, Formula, add_up, delta, exp, given, maximum, minimum, tanh, where, wrap
from ..ops import Apply, Copy, Select
from .base import Base, Steps, TensorInfo
from .elect import not_hidden
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
    square, total = x * x, wrap(SERIES[terms - 1])
    for c in reversed(SERIES[: terms - 1]):
        total = total * square + c
    return x * total if terms > 1 else x


def terms_of(bound: float, wide: bool) -> int:
    """How many terms are as good as the function for arguments up to `bound`; 0 if it takes more than there are."""
    if bound > 1:
        return 0
    ulp = 2.0 ** (-53 if wide else -24)
    enough = [n for n in range(1, len(SERIES)) if abs(SERIES[n]) * bound ** (2 * n) < ulp / 4]
    return enough[0] if enough else 0


class Competition(NamedTuple):
    """What decides its formulas. differ: whether the magnitudes of each model do. terms: see `bounded_tanh`."""

    differ: tuple[bool, ...]
    terms: int

    def clamped(self, k: int) -> Expr:
        return minimum(maximum(abs(delta(k)), given(3 * k)), given(3 * k + 1))

    def scores(self) -> list[Expr]:
        """How each model fares: exp(K share^2) tanh(d sum d), share: where its magnitude lies between its bounds.

        Of a model whose magnitudes are all the same, 0. given(3 k): bounds and their difference, from `numbers`.
        """
        models = len(self.differ)
        together = add_up([delta(k) for k in range(models)])
        found = []
        for k, differs in enumerate(self.differ):
            share = (self.clamped(k) - given(3 * k)) / given(3 * k + 2)
            score = exp(share * share * models) * bounded_tanh(delta(k) * together, self.terms)
            found.append(score if differs else wrap(0))
        return found


def numbers(bounds: Sequence[tuple[float, float]]) -> list[float]:
    return [x for low, high in bounds for x in (low, high, high - low)]


@functools.lru_cache
def _sizes(models: int) -> Formula:
    return Formula(tuple(delta(k) for k in range(models) for _ in range(3)))


@functools.lru_cache
def _part(of: Competition, sign: int) -> Formula:
    """What is above zero of each score, or what is below if the sign is -1, twice."""
    return Formula(tuple(maximum(q * sign, 0) for q in of.scores() for _ in range(2)))


@functools.lru_cache
def _competing(of: Competition, shared: tuple[bool, ...], propagate: bool) -> Formula:
    """The merged delta. shared: whether each model's scores reach beyond the cut. Places behind those of `numbers`:
    of each model the score at the cut and how far they reach, then the factor."""
    values, shares = [], []
    models = len(shared)
    for k, score in enumerate(of.scores()):
        least, span = given(3 * models + 2 * k), given(3 * models + 2 * k + 1)
        if shared[k]:
            d, size = delta(k), of.clamped(k)
            signed = where(d < 0, -size, where(d > 0, size, 0))
            shares.append((maximum(score, least) - least) / span)
            values.append(signed * shares[-1])
    merged = add_up(values) / maximum(add_up(shares), LEAST) * given(5 * models) if shares else wrap(0)
    return Formula((not_hidden(merged, [delta(k) for k in range(models)]) if propagate else merged,))


def _passes(p: Mapping[str, Any]) -> int:
    """3 by default; 4 where fewer elements than the share `ratio` agree with the sum, as with one above 0.5"""
    return 3 + (p["ratio"] > 0.5)


@method(
    "pcb",
    base=Base.REFERENCE,
    models=(1, MOST),
    parameters=[
        number("ratio", low=0, high=1, default=0.1, help="share of each model's elements that compete"),
        number("lambda", default=1.0, help="factor of the merged delta"),
        scope("tensor", "model"),
    ],
    passes=_passes,
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
        "mergekit": "It has no such method.",
        "the paper": [
            "It measures the whole model at once, which is scope: model.",
            "It tunes ratio, from 0.05 to 0.1, and lambda, about 1.2.",
        ],
    },
)
def pcb(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean of the deltas, weighted by how large each is among its own and how much it agrees with the others."""
    models, count, wide = tensor.models, tensor.count, tensor.wide
    if not count:
        return Copy()
    found = yield Select((*tails(count), 1) * models, keep_all_ties=True, of=_sizes(models))
    sizes = [s.magnitude(wide) for s in found]
    bounds = list(zip(sizes[::3], sizes[1::3], strict=True))
    propagate = p["nonfinite"] == "propagate"
    terms = 0 if propagate else terms_of(max(sizes[2::3]) * sum(sizes[2::3]), wide)
    of, places = Competition(tuple(high > low for low, high in bounds), terms), numbers(bounds)
    at = cut(p["ratio"], count)
    ends = yield from _ends(of, places, 1, (at, 1), wide)
    if 0.0 in ends:  # fewer scores than that are above zero: it is one from the bottom of those below
        below = yield from _ends(of, places, -1, (count - at + 1, count), wide)
        ends = [high if high > 0 else -low for high, low in zip(ends, below, strict=True)]
    ends = list(zip(ends[::2], ends[1::2], strict=True))
    shared = tuple(most > least for least, most in ends)
    ranges = [x for least, most in ends for x in (least, most - least)]
    formula = _competing(of, shared, propagate).using(*places, *ranges, p["lambda"])
    return Apply(formula, relative=True)


def _ends(
    of: Competition, places: Sequence[float], sign: int, ranks: tuple[int, int], wide: bool
) -> Generator[Select, Any, list[float]]:
    """Magnitudes of two ranks of the scores of each model that have the sign."""
    formula = _part(of, sign).using(*places)
    found = yield Select(ranks * len(of.differ), keep_all_ties=True, of=formula)
    return [s.magnitude(wide) for s in found]
