"""Weighted means, extrapolation and copies: one pass, nothing to measure.

Each of these methods is one sum of the models with fixed coefficients. The coefficients follow from the parameters
alone, so each tensor is read once and written once. If the coefficients are those of a mean, an element that is the
same in all models keeps its bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..requests import Combine, Copy, WeightedSum
from .base import Base, TensorInfo, check_sum, total
from .parameters import boolean, integer, number
from .registry import method

WEIGHT = number("weight", required=True, per_model=True, help="coefficient of the model")


def _check_linear(p: Mapping[str, Any], models: int) -> None:
    if p["normalize"]:
        check_sum("linear", p["weight"], "set normalize: false")


@method(
    "linear",
    base=Base.METADATA,
    parameters=[WEIGHT, boolean("normalize", default=True, help="divide by the sum of the weights")],
    check=_check_linear,
    formula="y = sum w_k x_k / Z,  Z = sum w_k (normalize: true),  1 (false)",
    paper="Wortsman et al. 2022, Model soups, arXiv 2203.05482",
    differences={
        "the paper": [
            "The paper's uniform soup has weights of 1.",
            "The paper's greedy soup evaluates models between merges. warpmerge does not offer it.",
        ]
    },
    presets={"mergekit": {}, "paper": {"weight": 1.0}},
)
def linear(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Weighted mean of the models: sum w_i x_i / sum w_i."""
    by = total(p["weight"]) if p["normalize"] else 1.0
    return WeightedSum(tuple(w / by for w in p["weight"]), on_deltas=False, agree=p["normalize"])


@method(
    "ema",
    base=Base.METADATA,
    parameters=[number("decay", low=0, high=1, required=True, help="share of the mean that stays at each step")],
    formula="e_1 = x_1,  e_k = decay e_(k-1) + (1 - decay) x_k,  y = e_K",
    paper="Tarvainen and Valpola 2017, Mean teachers, arXiv 1703.01780",
    notes=[
        "List the checkpoints from the oldest to the newest.",
        "The result is computed as one sum. A running mean that is stored in 16 bits would lose small steps.",
    ],
    differences={
        "mergekit": "mergekit does not implement this method. Its linear gives the same with the weights of that sum."
    },
)
def ema(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Exponential moving average of checkpoints, oldest first: e = decay e + (1 - decay) x."""
    decay, last = p["decay"], tensor.models - 1
    later = [(1 - decay) * decay ** (last - step) for step in range(1, last + 1)]
    return WeightedSum((decay**last, *later), on_deltas=False, agree=True)


def _check_lawa(p: Mapping[str, Any], models: int) -> None:
    if p["k"] is not None and p["k"] > models:
        raise UsageError(
            f"method 'lawa': k is {p['k']}, but there are only {models} models; list more models or lower k."
        )


@method(
    "lawa",
    base=Base.METADATA,
    parameters=[integer("k", low=1, optional=True, help="how many of the last models to average; default: all")],
    check=_check_lawa,
    formula="y = (x_(K-k+1) + ... + x_K) / k",
    paper="Kaddour 2022, Stop wasting my time! (latest weight averaging), arXiv 2209.14981",
    notes="List the checkpoints from the oldest to the newest.",
    differences={
        "mergekit": "mergekit does not implement this method. Its linear of the last k models gives the same."
    },
)
def lawa(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Mean of the last k checkpoints."""
    last = p["k"] or tensor.models
    return WeightedSum((0.0,) * (tensor.models - last) + (1 / last,) * last, on_deltas=False, agree=True)


@method(
    "expo",
    base=Base.REFERENCE,
    models=(1, 1),
    parameters=[number("alpha", required=True, help="how far to go beyond the model; 0 gives the model")],
    formula="y = x_1 + alpha d_1 = x_0 + (1 + alpha) d_1",
    paper="Zheng et al. 2024, Weak-to-strong extrapolation expedites alignment, arXiv 2404.16792",
    notes="The base is the model before alignment, such as the SFT model. The merged model is the aligned one.",
    differences={
        "mergekit": "mergekit does not implement this method. Its task_arithmetic with weight 1 + alpha gives the same."
    },
)
def expo(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Extrapolation beyond a model, away from its base: x_1 + alpha (x_1 - x_0)."""
    return WeightedSum((1 + p["alpha"],), on_deltas=True)


@method(
    "passthrough",
    base=Base.METADATA,
    copies=True,
    models=(1, 1),
    parameters=[
        number("scale", per_model=True, optional=True, help="factor of every element; default: the bytes are copied")
    ],
    formula="y = x_1;  with a scale  y = scale x_1",
    presets={"mergekit": {}},
)
def passthrough(tensor: TensorInfo, p: Mapping[str, Any]) -> Combine:
    """Copies one model, or scales it."""
    scale = p["scale"][0]
    return Copy() if scale is None else WeightedSum((scale,), on_deltas=False)
