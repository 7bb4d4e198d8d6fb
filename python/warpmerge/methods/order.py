"""Order statistics of each element: the K values are sorted, and those in the middle are averaged.

A mean follows any model that is far off; a median or a trimmed mean does not. A sorting network orders the K values
of each element with K log^2 K / 4 pairs of minimum and maximum. It has no branches, so a processor works on many
elements at once. Values that the result does not use are not computed. There is one read and nothing to measure. 128
models are the limit of a program's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..expr.expression import Expr, add_up, equal, maximum, minimum, where
from ..expr.formula import Formula
from ..expr.library import deltas
from ..requests import Combine, Map, WeightedSum
from .base import Base, TensorInfo
from .parameters import choice, number
from .registry import method

NOT_THERE = "mergekit does not implement this method."
MOST = 128  # models: for more, the sorting network would exceed the longest program
YIN = "Yin et al. 2018, Byzantine-robust distributed learning, arXiv 1803.01498"


def comparators(count: int) -> Iterator[tuple[int, int]]:
    """Pairs to put in order, one after the other, to sort `count` values: Batcher's merge exchange.

    Knuth, The Art of Computer Programming 3, algorithm 5.2.2M.
    """
    first = 1 << max(0, (count - 1).bit_length() - 1)
    p = first
    while p > 0:
        q, r, d = first, 0, p
        while True:
            yield from ((i, i + d) for i in range(count - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1


def ordered(values: Sequence[Expr]) -> list[Expr]:
    """The values from the least to the largest. A program computes only those that are used."""
    values = list(values)
    for low, high in comparators(len(values)):
        a, b = values[low], values[high]
        # If both are equal, each side takes another one, so that -0 and 0 both stay.
        values[low], values[high] = minimum(a, b), maximum(b, a)
    return values


def mean_of(values: Sequence[Expr]) -> Expr:
    """The mean of sorted values: their sum divided by their number, or a sum of quotients if the sum overflows."""
    count = len(values)
    if count == 1:
        return values[0]
    total = add_up(values)
    parts = add_up([v / count for v in values])
    if count > 2:  # the parts are rounded
        parts = minimum(maximum(parts, values[0]), values[-1])
    return where(equal(total - total, 0), total / count, parts)


def middle_mean(x: Sequence[Expr], low: int, high: int) -> Expr:
    """The mean of those of rank low, low + 1, ..., high - 1."""
    return mean_of(ordered(x)[low:high])


def _of_middle(tensor: TensorInfo, low: int, high: int) -> Map | WeightedSum:
    models = tensor.models
    if high - low == models:
        return WeightedSum((1 / models,) * models, on_deltas=False, agree=True)
    return Map(Formula((middle_mean(deltas(models), low, high),)), on_deltas=False, agree=models)


@method(
    "median",
    base=Base.METADATA,
    models=(1, MOST),
    parameters=[
        choice(
            "even",
            ["mean", "lower"],
            default="mean",
            help="for an even number of models: the mean of the two middle values, or the lower one (torch.median)",
        )
    ],
    formula="y = x_((K+1)/2) of the sorted x_(1) <= ... <= x_(K)\n"
    "for an even K  y = (x_(K/2) + x_(K/2+1)) / 2 (even: mean),  x_(K/2) (lower)",
    paper=YIN,
    notes="An element of a minority of the models may have any value without much effect on the result.",
    differences={"mergekit": NOT_THERE},
)
def median(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Median of the models, element by element."""
    low, high = (tensor.models - 1) // 2, tensor.models // 2 + 1
    return _of_middle(tensor, low, low + 1 if p["even"] == "lower" else high)


def dropped(beta: float, models: int) -> int:
    """How many models are dropped at each end: the truncated float64 product."""
    return int(beta * models)


def _check_trimmed(p: Mapping[str, Any], models: int) -> None:
    if p["beta"] >= 0.5:
        raise UsageError(
            f"method 'trimmed_mean': beta: {p['beta']:g} drops half of the models at each end; choose a beta below "
            "0.5, or use median."
        )


@method(
    "trimmed_mean",
    base=Base.METADATA,
    models=(1, MOST),
    parameters=[
        number("beta", low=0, high=0.5, required=True, help="share of the models to drop at each end; below 0.5")
    ],
    check=_check_trimmed,
    formula="b = int(beta K)\ny = (x_(b+1) + ... + x_(K-b)) / (K - 2 b) of the sorted x_(1) <= ... <= x_(K)",
    paper=YIN,
    notes="A beta below 1 / K drops no model: the result is the mean.",
    differences={"mergekit": NOT_THERE},
)
def trimmed_mean(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Mean of the models without the largest and the smallest values, element by element."""
    drop = dropped(p["beta"], tensor.models)
    return _of_middle(tensor, drop, tensor.models - drop)
