"""Parameter competition: each element is shared out among the models by how much it matters to each, and to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..formula import Expr, Formula, add_up, delta, exp, maximum, minimum, tanh, where, wrap
from ..ops import Apply, Copy, Select
from .base import Base, Steps, TensorInfo
from .elect import not_hidden
from .parameters import number, scope
from .registry import method

TAIL = 1e-4  # share of the magnitudes at each end that count as the last one inside
LEAST = 1e-12  # sums of scores below this count as it


def tails(count: int) -> tuple[int, int]:
    """Ranks of the least and the largest magnitude that count, the largest of all being 1."""
    return count - int(TAIL * count), count - int((1 - TAIL) * count - 1)


def cut(ratio: float, count: int) -> int:
    """Rank of the score above which elements compete: of the sorted, the one at int((1 - ratio) n)."""
    return max(1, count - int((1 - ratio) * count))


def clamped(k: int, low: float, high: float) -> Expr:
    return minimum(maximum(abs(delta(k)), low), high)


def scores(bounds: Sequence[tuple[float, float]]) -> list[Expr]:
    """How each model fares: exp(K share^2) tanh(d sum d), share: where its magnitude lies between its bounds.

    Of a model whose magnitudes are all the same, 0.
    """
    models = len(bounds)
    together = add_up([delta(k) for k in range(models)])
    found = []
    for k, (low, high) in enumerate(bounds):
        if high > low:
            share = (clamped(k, low, high) - low) / (high - low)
            found.append(exp(share * share * models) * tanh(delta(k) * together))
        else:
            found.append(wrap(0))
    return found


def parts(score: Sequence[Expr]) -> tuple[Expr, ...]:
    """What is above zero of each score and what is below, whose magnitudes order the scores."""
    return tuple(e for q in score for e in (maximum(q, 0), maximum(-q, 0)))


def ranked(above: float, below: float) -> float:
    """A score from what `parts` has at its rank: from the top of those above zero, from the bottom of those below."""
    return above if above > 0 else -below


def competing(
    bounds: Sequence[tuple[float, float]], ends: Sequence[tuple[float, float]], factor: float, propagate: bool
) -> Expr:
    """The merged delta. ends: of each model the score at the cut and the largest one."""
    values, shares = [], []
    for k, (score, (low, high), (least, most)) in enumerate(zip(scores(bounds), bounds, ends, strict=True)):
        if most > least:
            d = delta(k)
            signed = where(d < 0, -clamped(k, low, high), where(d > 0, clamped(k, low, high), 0))
            shares.append((maximum(score, least) - least) / (most - least))
            values.append(signed * shares[-1])
    merged = add_up(values) / maximum(add_up(shares), LEAST) * factor if shares else wrap(0)
    return not_hidden(merged, [delta(k) for k in range(len(bounds))]) if propagate else merged


@method(
    "pcb",
    base=Base.REFERENCE,
    parameters=[
        number("ratio", low=0, high=1, default=0.1, help="share of each model's elements that compete"),
        number("lambda", default=1.0, help="factor of the merged delta"),
        scope("tensor", "model"),
    ],
    passes=3,
    formula="""a_k = |d_k| kept between its quantiles 0.0001 and 0.9999,  P_k = (a_k - min a_k) / (max a_k - min a_k)
Q_k = exp(K P_k^2) tanh(d_k sum d_j),  q_k = the quantile 1 - ratio of Q_k
s_k = (max(Q_k, q_k) - q_k) / (max Q_k - q_k),  0 where a_k or Q_k is the same everywhere
y = x_0 + lambda sum sign(d_k) a_k s_k / max(sum s_k, 1e-12)""",
    paper="Du et al. 2024, Parameter competition balancing for model merging, arXiv 2410.02396",
    notes=[
        "Quantiles are elements, those at int(n / 10000), int(0.9999 n - 1) and int((1 - ratio) n) of the sorted.",
        "Tensors of one or two elements, in which nothing competes, stay as they are in the base.",
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
    sizes = tuple(delta(k) for k in range(models) for _ in range(2))
    found = yield Select(tails(count) * models, keep_all_ties=True, of=Formula(sizes))
    bounds = _pairs([s.magnitude(wide) for s in found])
    at = cut(p["ratio"], count)
    value = tuple(e for pair in _pairs(parts(scores(bounds))) for e in pair * 2)
    found = yield Select((at, count - at + 1, 1, count) * models, keep_all_ties=True, of=Formula(value))
    ends = _pairs([ranked(*pair) for pair in _pairs([s.magnitude(wide) for s in found])])
    propagate = p["nonfinite"] == "propagate"
    return Apply(Formula((competing(bounds, ends, p["lambda"], propagate),)), relative=True)


def _pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))
