"""Robust aggregation: means that a few bad models cannot move far.

One read measures the norms and mutual distances of the K tensors. The host computes coefficients from them. A second
read forms the sum, or copies the chosen tensor. With `scope: model` the distances of all tensors are added up first,
as in the papers, so that one decision holds for the whole model.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..requests import Copy, GramResult, WeightedSum
from .base import Base, Steps, TensorInfo, check_sum, total
from .geometry import Table, distances_to, measure
from .parameters import Parameter, integer, number, scope
from .registry import method

WEIGHT = number("weight", low=0, default=1.0, per_model=True, help="how much the model counts")
NOT_THERE = "mergekit does not implement this method."
BAD = integer(
    "f", low=0, optional=True, help="how many models may be bad; default: the largest possible number, (K - 3) / 2"
)


def _bad(p: Mapping[str, Any], models: int) -> int:
    return (models - 3) // 2 if p["f"] is None else p["f"]


def _check_krum(name: str, p: Mapping[str, Any], models: int) -> None:
    if models < 2 * _bad(p, models) + 3:
        raise UsageError(
            f"method '{name}': f: {p['f']} needs at least {2 * p['f'] + 3} models (2 f + 3), got {models}; "
            "list more models or lower f."
        )


def krum_order(gram: GramResult, bad: int) -> list[int]:
    """The models in order of their sum of squared distances to their K - f - 2 nearest ones, then of their index."""
    models = len(gram.norms_sq)
    others = [sorted(d for k, d in enumerate(row) if k != i) for i, row in enumerate(gram.distances_sq)]
    scores = [math.fsum(near[: models - bad - 2]) for near in others]
    return sorted(range(models), key=lambda i: (scores[i], i))


@method(
    "krum",
    base=Base.METADATA,
    models=(3, None),
    parameters=[BAD, scope("tensor", "model")],
    check=lambda p, models: _check_krum("krum", p, models),
    formula="s_i = sum of |x_i - x_j|^2 over the K - f - 2 nearest x_j\n"
    "y = the x_i with the least s_i, the first one of several",
    paper="Blanchard et al. 2017, Machine learning with adversaries, arXiv 1703.02757",
    notes=[
        "The chosen tensor is copied byte for byte.",
        "At tensor scope the result can mix tensors of several models.",
    ],
    differences={"mergekit": NOT_THERE, "the paper": "The paper decides once for the whole model: scope: model."},
)
def krum(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """The model with the least sum of squared distances to its nearest models."""
    gram = yield from measure(tensor, on_deltas=False)
    return Copy(krum_order(gram, _bad(p, tensor.models))[0])


def _check_multi_krum(p: Mapping[str, Any], models: int) -> None:
    _check_krum("multi_krum", p, models)
    most = models - _bad(p, models)
    if p["m"] is not None and p["m"] > most:
        raise UsageError(f"method 'multi_krum': m is at most K - f = {most} of these {models} models, got {p['m']}.")


@method(
    "multi_krum",
    base=Base.METADATA,
    models=(3, None),
    parameters=[
        BAD,
        integer("m", low=1, optional=True, help="how many models to average; default: K - f - 2, the paper's bound"),
        scope("tensor", "model"),
    ],
    check=_check_multi_krum,
    formula="s_i = sum of |x_i - x_j|^2 over the K - f - 2 nearest x_j\ny = mean of the m x_i with the least s_i",
    paper="Blanchard et al. 2017, Machine learning with adversaries, arXiv 1703.02757",
    differences={"mergekit": NOT_THERE, "the paper": "The paper decides once for the whole model: scope: model."},
)
def multi_krum(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Mean of the m models with the least sums of squared distances to their nearest models."""
    gram = yield from measure(tensor, on_deltas=False)
    bad = _bad(p, tensor.models)
    chosen = krum_order(gram, bad)[: p["m"] or tensor.models - bad - 2]
    if len(chosen) == 1:
        return Copy(chosen[0])
    coefficients = (1 / len(chosen) if i in chosen else 0.0 for i in range(tensor.models))
    return WeightedSum(tuple(coefficients), on_deltas=False, agree=True)


def _check_weight(name: str, p: Mapping[str, Any]) -> None:
    check_sum(name, p["weight"], "give at least one model a weight above 0")


@method(
    "geometric_median",
    base=Base.METADATA,
    parameters=[
        WEIGHT,
        number("eps", low=1e-12, default=1e-6, help="a smaller distance counts as this"),
        integer("max_iter", low=0, default=100, help="largest number of steps; a step reads nothing"),
        number("tol", low=0, default=1e-6, help="stop when a step lowers the sum of distances by a smaller share"),
        scope("tensor", "model"),
    ],
    check=lambda p, models: _check_weight("geometric_median", p),
    formula="y = the v with the least sum w_k |x_k - v|\n"
    "v <- sum b_k x_k / sum b_k,  b_k = w_k / max(eps, |x_k - v|);  v starts as the weighted mean",
    paper="Pillutla et al. 2019, Robust aggregation for federated learning, arXiv 1912.13445",
    notes="The smoothed Weiszfeld algorithm.",
    differences={"mergekit": NOT_THERE, "the paper": "The paper takes the median of whole models: scope: model."},
)
def geometric_median(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """The point of the least weighted sum of distances to the models."""
    gram = yield from measure(tensor, on_deltas=False)
    coefficients = weiszfeld(p["weight"], gram.distances_sq, p["eps"], p["max_iter"], p["tol"])
    return WeightedSum(tuple(coefficients), on_deltas=False, agree=True)


def weiszfeld(weight: Sequence[float], distances_sq: Table, eps: float, max_iter: int, tol: float) -> list[float]:
    """Coefficients of the points for their geometric median. The iteration starts at their weighted mean."""
    weight = point = _shares(weight)
    distances = distances_to(point, distances_sq)
    objective = _objective(weight, distances)
    for _ in range(max_iter):
        point = _shares([w / max(eps, d) for w, d in zip(weight, distances, strict=True)])
        distances = distances_to(point, distances_sq)
        before, objective = objective, _objective(weight, distances)
        if abs(before - objective) <= tol * before:
            break
    return point


def _shares(numbers: Sequence[float]) -> list[float]:
    by = total(numbers)
    return [n / by for n in numbers]


def _objective(weight: Sequence[float], distances: Sequence[float]) -> float:
    return math.fsum(w * d for w, d in zip(weight, distances, strict=True))


def _clip() -> Parameter:
    about = "largest norm of a delta; auto, the default: the median of the norms; inf: no limit"
    plain = number("clip", low=0, high=math.inf, optional=True, help=about)

    def convert(value: Any) -> float | None:
        if isinstance(value, str):
            value = {"auto": None, "inf": math.inf}.get(value, value)
        return plain.convert(value)

    return dataclasses.replace(plain, convert=convert, kind="auto | inf | number >= 0")


@method(
    "norm_clipped_mean",
    base=Base.REFERENCE,
    parameters=[WEIGHT, _clip(), scope("tensor", "model")],
    check=lambda p, models: _check_weight("norm_clipped_mean", p),
    formula="y = x_0 + sum w_k min(1, clip / |d_k|) d_k / sum w_k",
    paper="Sun et al. 2019, Can you really backdoor federated learning?, arXiv 1911.07963",
    differences={
        "mergekit": NOT_THERE,
        "the paper": "The paper clips the norm of the whole task vector: scope: model.",
    },
)
def norm_clipped_mean(tensor: TensorInfo, p: Mapping[str, Any]) -> Steps:
    """Base plus the weighted mean of the deltas. A delta whose norm is above `clip` is scaled down to it."""
    gram = yield from measure(tensor, on_deltas=True)
    norms = [math.sqrt(n) for n in gram.norms_sq]
    clip = statistics.median(norms) if p["clip"] is None else p["clip"]
    shares = [w * (clip / n if n > clip else 1.0) for w, n in zip(p["weight"], norms, strict=True)]
    by = total(p["weight"])
    return WeightedSum(tuple(s / by for s in shares), on_deltas=True)
